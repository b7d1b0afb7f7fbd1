#include "services/client/terminal/live_screen.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string_view>

#include "absl/time/clock.h"
#include "common/base/check.h"

namespace banyan::client {
namespace {

constexpr std::string_view kEnter = "\x1b[?1049h\x1b[?25l";
constexpr std::string_view kLeave = "\x1b[?25h\x1b[?1049l";
constexpr char kCtrlC = 3;

sigset_t ScreenSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGWINCH}) sigaddset(&set, signal);
  return set;
}

void Put(std::string_view bytes) {
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

void LiveScreen::BlockSignals() {
  const sigset_t set = ScreenSignals();
  CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
}

LiveScreen::LiveScreen() {
  const sigset_t set = ScreenSignals();
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  CHECK(signal_fd_ >= 0);
  CHECK(tcgetattr(STDIN_FILENO, &before_) == 0);
  termios keys = before_;
  // Without ISIG Ctrl-C is a key like q, and Ctrl-Z cannot leave the terminal half changed.
  keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG);
  tcsetattr(STDIN_FILENO, TCSANOW, &keys);
  Put(kEnter);
  MeasureSize();
}

LiveScreen::~LiveScreen() {
  Put(kLeave);
  tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  close(signal_fd_);
}

void LiveScreen::MeasureSize() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return;
  if (size.ws_col > 0) columns_ = size.ws_col;
  if (size.ws_row > 0) rows_ = size.ws_row;
}

void LiveScreen::Draw(const std::vector<std::string>& lines) {
  const size_t count = std::min(lines.size(), static_cast<size_t>(rows_));
  std::string out = "\x1b[H";
  for (size_t i = 0; i < count; ++i) {
    out.append(lines[i], 0, static_cast<size_t>(columns_));
    out += "\x1b[K";
    if (i + 1 < count) out += "\n";
  }
  Put(out + "\x1b[J");
}

LiveScreen::Event LiveScreen::Wait(absl::Time deadline) {
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd fds[] = {{STDIN_FILENO, POLLIN, 0}, {signal_fd_, POLLIN, 0}};
    const int ready = poll(fds, 2, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready < 0 && errno != EINTR) return Event::kQuit;
    if (ready == 0) return Event::kTime;
    signalfd_siginfo info;
    bool resized = false;
    while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
      if (info.ssi_signo != SIGWINCH) return Event::kQuit;
      resized = true;
    }
    if (resized) {
      MeasureSize();
      return Event::kResize;
    }
    if (fds[0].revents == 0) continue;
    char keys[64];
    const ssize_t count = read(STDIN_FILENO, keys, sizeof(keys));
    if (count <= 0) return Event::kQuit;
    for (ssize_t i = 0; i < count; ++i) {
      if (keys[i] == 'q' || keys[i] == 'Q' || keys[i] == kCtrlC) return Event::kQuit;
    }
  }
}

}  // namespace banyan::client
