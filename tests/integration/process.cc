#include "tests/integration/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "absl/time/clock.h"
#include "common/base/check.h"
#include "common/base/strings.h"

namespace banyan::test {

std::string BinaryPath(std::string_view name) { return fmt::format("{}/{}", BANYAN_BIN_DIR, name); }

Process::Process(const std::vector<std::string>& args) {
  CHECK(!args.empty());
  int fds[2];
  CHECK(pipe2(fds, O_CLOEXEC) == 0);
  std::vector<char*> argv;
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);

  const pid_t parent = getpid();
  pid_ = fork();
  CHECK(pid_ >= 0);
  if (pid_ == 0) {
    // Only async-signal-safe calls from here on.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(fds[1], STDOUT_FILENO);
    dup2(fds[1], STDERR_FILENO);
    const int null_fd = open("/dev/null", O_RDONLY);
    if (null_fd >= 0) dup2(null_fd, STDIN_FILENO);
    execv(argv[0], argv.data());
    constexpr char kMessage[] = "cannot be executed\n";
    [[maybe_unused]] ssize_t written = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
    _exit(127);
  }
  close(fds[1]);
  output_fd_ = fds[0];
  reader_ = std::thread([this] { ReadOutput(); });
}

Process::~Process() {
  bool exited;
  {
    absl::MutexLock lock(&mutex_);
    exited = exited_;
  }
  if (!exited) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  reader_.join();
  close(output_fd_);
}

void Process::Signal(int signal) const { CHECK(kill(pid_, signal) == 0); }

void Process::ReadOutput() {
  char buffer[4096];
  while (true) {
    const ssize_t n = read(output_fd_, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    absl::MutexLock lock(&mutex_);
    if (n <= 0) {
      output_ended_ = true;
      return;
    }
    log_.append(buffer, static_cast<size_t>(n));
  }
}

absl::StatusOr<int> Process::WaitExit(absl::Duration timeout) {
  {
    absl::MutexLock lock(&mutex_);
    if (exited_) return exit_code_;
  }
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  CHECK(pidfd >= 0);
  pollfd event{pidfd, POLLIN, 0};
  const absl::Time deadline = absl::Now() + timeout;
  int ready;
  do {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    ready = poll(&event, 1, static_cast<int>(left_ms > 0 ? left_ms : 0));
  } while (ready < 0 && errno == EINTR);
  close(pidfd);
  if (ready == 0) {
    return StatusF(absl::StatusCode::kDeadlineExceeded, "process {} still runs after {}; log:\n{}",
                   pid_, absl::FormatDuration(timeout), Log());
  }
  int status = 0;
  CHECK(waitpid(pid_, &status, 0) == pid_);
  absl::MutexLock lock(&mutex_);
  exited_ = true;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  // What it wrote last may still be in the pipe; a grandchild may keep that open.
  mutex_.AwaitWithTimeout(absl::Condition(&output_ended_), absl::Seconds(5));
  return exit_code_;
}

bool Process::HasLineOrEnded(const std::vector<std::string>& texts, std::string* line) const {
  for (size_t begin = 0; begin < log_.size();) {
    const size_t end = log_.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string_view candidate = std::string_view(log_).substr(begin, end - begin);
    for (const std::string& text : texts) {
      if (candidate.find(text) == std::string_view::npos) continue;
      *line = candidate;
      return true;
    }
    begin = end + 1;
  }
  return output_ended_;
}

absl::StatusOr<std::string> Process::WaitForLine(std::string_view text, absl::Duration timeout) {
  return WaitForAnyLine({std::string(text)}, timeout);
}

absl::StatusOr<std::string> Process::WaitForAnyLine(const std::vector<std::string>& texts,
                                                    absl::Duration timeout) {
  std::string line;
  absl::MutexLock lock(&mutex_);
  const auto found = [this, &texts, &line]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return HasLineOrEnded(texts, &line);
  };
  const bool in_time = mutex_.AwaitWithTimeout(absl::Condition(&found), timeout);
  if (!line.empty()) return line;
  return StatusF(in_time ? absl::StatusCode::kNotFound : absl::StatusCode::kDeadlineExceeded,
                 "no line with '{}' {}; log:\n{}", texts[0],
                 in_time ? "before the output ended" : "in time", log_);
}

absl::StatusOr<std::string> Process::ListeningAddress(absl::Duration timeout) {
  const std::vector<std::string> keys = {" listening address=",
                                         R"("event":"listening","address":")"};
  absl::StatusOr<std::string> line = WaitForAnyLine(keys, timeout);
  if (!line.ok()) return line.status();
  for (const std::string& key : keys) {
    const size_t at = line->find(key);
    if (at == std::string::npos) continue;
    const std::string rest = line->substr(at + key.size());
    return rest.substr(0, rest.find_first_of(" \""));
  }
  return *line;
}

std::string Process::Log() const {
  absl::MutexLock lock(&mutex_);
  return log_;
}

int64_t Process::ResidentBytes() const {
  std::ifstream statm(fmt::format("/proc/{}/statm", pid_));
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace banyan::test
