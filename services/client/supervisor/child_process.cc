#include "services/client/supervisor/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "common/base/strings.h"

namespace banyan::client {
namespace {

constexpr size_t kMaxLineBytes = 16 << 10;
constexpr int kExecFailed = 127;

// Between fork and exec only async-signal-safe calls are allowed: everything is prepared before.
[[noreturn]] void RunChild(char* const* argv, int output_fd, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(kExecFailed);  // the supervisor died before the line above
  // A change of the log level waits until the service can take it, instead of ending it.
  sigset_t held;
  sigemptyset(&held);
  sigaddset(&held, SIGUSR1);
  sigaddset(&held, SIGUSR2);
  sigprocmask(SIG_SETMASK, &held, nullptr);
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);  // a child that drains may outlive the reader of its log
  const int null_fd = open("/dev/null", O_RDONLY);
  if (null_fd >= 0) dup2(null_fd, STDIN_FILENO);
  dup2(output_fd, STDOUT_FILENO);
  dup2(output_fd, STDERR_FILENO);
  execv(argv[0], argv);
  _exit(kExecFailed);
}

}  // namespace

std::string ChildProcess::End::ToString() const {
  if (by_signal) return fmt::format("signal {} ({})", code, strsignal(code));
  return fmt::format("exit code {}", code);
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::vector<std::string>& argv) {
  if (access(argv[0].c_str(), X_OK) != 0) {
    return StatusF(absl::StatusCode::kNotFound, "{}: {}", argv[0], strerror(errno));
  }
  std::vector<char*> pointers;
  for (const std::string& arg : argv) pointers.push_back(const_cast<char*>(arg.c_str()));
  pointers.push_back(nullptr);
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) {
    return StatusF(absl::StatusCode::kResourceExhausted, "pipe for {}: {}", argv[0],
                   strerror(errno));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) RunChild(pointers.data(), fds[1], parent);
  const int error = errno;
  close(fds[1]);
  if (pid < 0) {
    close(fds[0]);
    return StatusF(absl::StatusCode::kResourceExhausted, "cannot start {}: {}", argv[0],
                   strerror(error));
  }
  setpgid(pid, pid);  // the child does it too: whoever comes first
  fcntl(fds[0], F_SETFL, O_NONBLOCK);
  return absl::WrapUnique(new ChildProcess(pid, fds[0]));
}

ChildProcess::~ChildProcess() {
  if (running_) {
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  if (output_fd_ >= 0) close(output_fd_);
}

void ChildProcess::Signal(int signal) const {
  if (running_) kill(pid_, signal);
}

std::vector<std::string> ChildProcess::ReadLines() {
  std::vector<std::string> lines;
  char buffer[4096];
  while (output_fd_ >= 0) {
    const ssize_t count = read(output_fd_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) {
      close(std::exchange(output_fd_, -1));
      if (!unfinished_.empty()) lines.push_back(std::exchange(unfinished_, {}));
      break;
    }
    for (ssize_t i = 0; i < count; ++i) {
      if (buffer[i] == '\n' || unfinished_.size() >= kMaxLineBytes) {
        lines.push_back(std::exchange(unfinished_, {}));
      }
      if (buffer[i] != '\n') unfinished_.push_back(buffer[i]);
    }
  }
  return lines;
}

std::optional<ChildProcess::End> ChildProcess::Poll() {
  if (!running_) return std::nullopt;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  running_ = false;
  End end;
  end.by_signal = WIFSIGNALED(status);
  end.code = end.by_signal ? WTERMSIG(status) : WEXITSTATUS(status);
  return end;
}

}  // namespace banyan::client
