// Admits work until it is closed, then lets the rest finish.
//   if (auto pass = gate.TryEnter()) { ... work while pass lives ... } else { refuse: draining }
//   gate.Close(); gate.WaitUntilEmpty(deadline);
// Thread-safe.
#pragma once

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace banyan {

class DrainGate {
 public:
  // Holding one counts as one piece of admitted work.
  class Pass {
   public:
    explicit Pass(DrainGate* gate) : gate_(gate) {}
    Pass(Pass&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Pass& operator=(Pass&& other) noexcept {
      if (this != &other) {
        Release();
        gate_ = std::exchange(other.gate_, nullptr);
      }
      return *this;
    }
    ~Pass() { Release(); }

   private:
    void Release() {
      if (gate_ != nullptr) std::exchange(gate_, nullptr)->Leave();
    }
    DrainGate* gate_;
  };

  std::optional<Pass> TryEnter() {
    absl::MutexLock lock(&mutex_);
    if (closed_) return std::nullopt;
    ++inside_;
    return std::optional<Pass>(std::in_place, this);
  }

  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }

  // False when work is still inside at the deadline.
  bool WaitUntilEmpty(absl::Time deadline) const {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithDeadline(absl::Condition(this, &DrainGate::Empty), deadline);
  }

 private:
  bool Empty() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return inside_ == 0; }
  void Leave() {
    absl::MutexLock lock(&mutex_);
    --inside_;
  }

  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  int inside_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace banyan
