#include "common/base/log_level_signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "common/base/check.h"
#include "common/base/logging.h"

namespace banyan {
namespace {

sigset_t LevelSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  return set;
}

}  // namespace

LogLevelStep StepLogLevel(int signal) {
  const bool more = signal == SIGUSR1;
  LogLevelStep step{GetLogLevel(), LogLevel::kInfo, more ? "SIGUSR1" : "SIGUSR2"};
  switch (step.from) {
    case LogLevel::kDebug:
      step.to = more ? LogLevel::kDebug : LogLevel::kInfo;
      break;
    case LogLevel::kInfo:
      step.to = more ? LogLevel::kDebug : LogLevel::kWarning;
      break;
    case LogLevel::kWarning:
      step.to = more ? LogLevel::kInfo : LogLevel::kError;
      break;
    case LogLevel::kError:
      step.to = more ? LogLevel::kWarning : LogLevel::kError;
      break;
  }
  SetLogLevel(step.to);
  return step;
}

LogLevelSignals::LogLevelSignals() {
  const sigset_t set = LevelSignals();
  CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  CHECK(signal_fd_ >= 0 && stop_fd_ >= 0);
  thread_ = std::thread([this] { Watch(); });
}

LogLevelSignals::~LogLevelSignals() {
  const uint64_t one = 1;
  CHECK(write(stop_fd_, &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)));
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

void LogLevelSignals::Watch() const {
  pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  while (true) {
    if (poll(fds, 2, -1) < 0) {
      CHECK(errno == EINTR);
      continue;
    }
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    CHECK(read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info)));
    const LogLevelStep step = StepLogLevel(static_cast<int>(info.ssi_signo));
    WriteLog(LogLevel::kInfo, "log_level",
             {{"from", LogLevelName(step.from)},
              {"to", LogLevelName(step.to)},
              {"signal", step.signal_name}});
  }
}

}  // namespace banyan
