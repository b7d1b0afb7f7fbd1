#include "common/base/stop_signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "common/base/check.h"

namespace banyan {
namespace {

sigset_t BothSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

StopSignals::StopSignals() {
  const sigset_t set = BothSignals();
  CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
  CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  notify_fd_ = eventfd(0, EFD_CLOEXEC);
  CHECK(signal_fd_ >= 0 && notify_fd_ >= 0);
}

StopSignals::~StopSignals() {
  close(signal_fd_);
  close(notify_fd_);
}

int StopSignals::Wait() {
  pollfd fds[] = {{signal_fd_, POLLIN, 0}, {notify_fd_, POLLIN, 0}};
  while (poll(fds, 2, -1) < 0) CHECK(errno == EINTR);
  if (fds[0].revents == 0) return 0;
  signalfd_siginfo info;
  CHECK(read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info)));
  return static_cast<int>(info.ssi_signo);
}

void StopSignals::Notify() {
  const uint64_t one = 1;
  CHECK(write(notify_fd_, &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)));
}

void StopSignals::RestoreDefault() {
  const sigset_t set = BothSignals();
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  CHECK(pthread_sigmask(SIG_UNBLOCK, &set, nullptr) == 0);
}

}  // namespace banyan
