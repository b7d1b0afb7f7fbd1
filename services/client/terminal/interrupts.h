// Ctrl-C as a call instead of the end of the process.
#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace banyan::client {

// While one exists, SIGINT is blocked in this thread and in those it starts later, and a thread of
// its own takes it: it runs the handler of the innermost Scope. Without one, SIGINT is ignored, or
// ends the process with exit code 130 if `exit_when_idle`. Make it before anything starts threads.
// Thread-safe; at most one at a time.
class Interrupts {
 public:
  explicit Interrupts(bool exit_when_idle);
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // `handler` runs on the thread of Interrupts, at most once per Ctrl-C, never after ~Scope.
  class Scope {
   public:
    Scope(Interrupts& interrupts, std::function<void()> handler);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interrupts& interrupts_;
    std::function<void()> outer_;
  };

 private:
  void Watch();

  const bool exit_when_idle_;
  absl::Mutex mutex_;
  std::function<void()> handler_ ABSL_GUARDED_BY(mutex_);
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

}  // namespace banyan::client
