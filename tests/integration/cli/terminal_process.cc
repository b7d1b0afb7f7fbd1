#include "tests/integration/cli/terminal_process.h"

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/time/clock.h"
#include "common/base/check.h"
#include "common/base/strings.h"

namespace banyan::test {

TerminalProcess::TerminalProcess(const std::vector<std::string>& args, const std::string& home) {
  std::vector<char*> pointers;
  for (const std::string& arg : args) pointers.push_back(const_cast<char*>(arg.c_str()));
  pointers.push_back(nullptr);
  winsize size{};
  size.ws_row = 50;
  size.ws_col = 200;
  pid_ = forkpty(&terminal_fd_, nullptr, nullptr, &size);
  CHECK(pid_ >= 0);
  if (pid_ == 0) {
    setenv("HOME", home.c_str(), 1);
    unsetenv("XDG_STATE_HOME");
    setenv("TERM", "xterm", 1);
    execv(pointers[0], pointers.data());
    _exit(127);
  }
}

TerminalProcess::~TerminalProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(terminal_fd_);
}

void TerminalProcess::Type(std::string_view keys) const {
  CHECK(write(terminal_fd_, keys.data(), keys.size()) == static_cast<ssize_t>(keys.size()));
}

void TerminalProcess::Resize(int columns, int rows) const {
  winsize size{};
  size.ws_row = static_cast<unsigned short>(rows);
  size.ws_col = static_cast<unsigned short>(columns);
  CHECK(ioctl(terminal_fd_, TIOCSWINSZ, &size) == 0);
}

bool TerminalProcess::IsInLineMode() const {
  termios mode{};
  CHECK(tcgetattr(terminal_fd_, &mode) == 0);
  return (mode.c_lflag & ICANON) != 0 && (mode.c_lflag & ECHO) != 0 && (mode.c_lflag & ISIG) != 0;
}

absl::Status TerminalProcess::AwaitKeyMode(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    termios mode{};
    CHECK(tcgetattr(terminal_fd_, &mode) == 0);
    if ((mode.c_lflag & (ICANON | ISIG)) == 0) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError("the terminal still takes lines, not keys");
    }
    absl::SleepFor(absl::Milliseconds(1));  // the kernel tells nobody about the change
  }
}

bool TerminalProcess::ReadMore(absl::Time deadline) {
  while (!output_ended_) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) return false;
    pollfd fd = {terminal_fd_, POLLIN, 0};
    if (poll(&fd, 1, static_cast<int>(std::min<int64_t>(left, 1000))) <= 0) continue;
    char buffer[4096];
    const ssize_t count = read(terminal_fd_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      output_ended_ = true;  // EIO: the other side is closed
      return false;
    }
    unread_.append(buffer, static_cast<size_t>(count));
    return true;
  }
  return false;
}

absl::Status TerminalProcess::Await(std::string_view text, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    if (const size_t at = unread_.find(text); at != std::string::npos) {
      awaited_ = unread_.substr(0, at + text.size());
      unread_.erase(0, at + text.size());
      return absl::OkStatus();
    }
    if (!ReadMore(deadline)) {
      return StatusF(
          output_ended_ ? absl::StatusCode::kNotFound : absl::StatusCode::kDeadlineExceeded,
          "'{}' did not appear; unread: {}", text, Printable(unread_, 4000));
    }
  }
}

absl::StatusOr<int> TerminalProcess::WaitExit(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (ReadMore(deadline)) {
  }
  if (!output_ended_) {
    return StatusF(absl::StatusCode::kDeadlineExceeded, "still runs; unread: {}",
                   Printable(unread_, 4000));
  }
  int status = 0;
  CHECK(waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace banyan::test
