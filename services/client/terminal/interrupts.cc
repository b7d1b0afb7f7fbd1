#include "services/client/terminal/interrupts.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/base/check.h"

namespace banyan::client {
namespace {

constexpr int kExitInterrupted = 130;  // what a shell reports for a program ended by SIGINT

sigset_t InterruptSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

Interrupts::Interrupts(bool exit_when_idle) : exit_when_idle_(exit_when_idle) {
  const sigset_t set = InterruptSet();
  CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  CHECK(signal_fd_ >= 0 && stop_fd_ >= 0);
  thread_ = std::thread([this] { Watch(); });
}

Interrupts::~Interrupts() {
  const uint64_t one = 1;
  CHECK(write(stop_fd_, &one, sizeof(one)) == sizeof(one));
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
  const sigset_t set = InterruptSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void Interrupts::Watch() {
  for (;;) {
    pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) {
      CHECK(errno == EINTR);
      continue;
    }
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    absl::MutexLock lock(&mutex_);
    if (handler_) {
      handler_();
    } else if (exit_when_idle_) {
      _exit(kExitInterrupted);
    }
  }
}

Interrupts::Scope::Scope(Interrupts& interrupts, std::function<void()> handler)
    : interrupts_(interrupts) {
  absl::MutexLock lock(&interrupts_.mutex_);
  outer_ = std::exchange(interrupts_.handler_, std::move(handler));
}

Interrupts::Scope::~Scope() {
  absl::MutexLock lock(&interrupts_.mutex_);
  interrupts_.handler_ = std::move(outer_);
}

}  // namespace banyan::client
