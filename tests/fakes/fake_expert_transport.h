// Experts that are there or not, at a test's word. Carries no rows.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/trunk/experts/expert_transport.h"

namespace banyan::trunk {

// Thread-safe. WaitReady counts its calls; with a standing clock it returns kUnavailable after a
// millisecond, so that a loop that polls it neither hangs nor spins.
class FakeExpertTransport final : public ExpertTransport {
 public:
  absl::Status Dispatch(const Batch&) override { return Ready(); }
  absl::Status Combine(float*) override { return Ready(); }
  void Abandon() override {}

  absl::Status Ready() const override {
    absl::MutexLock lock(&mutex_);
    return Status();
  }

  absl::Status WaitReady(absl::Time) override {
    absl::MutexLock lock(&mutex_);
    ++num_waits_;
    mutex_.AwaitWithTimeout(absl::Condition(&ready_), absl::Milliseconds(1));
    return Status();
  }

  void SetReady(bool ready) {
    absl::MutexLock lock(&mutex_);
    ready_ = ready;
  }

  // Returns when WaitReady has been called `count` times since the start.
  void AwaitWaits(int count) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [this, count]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return num_waits_ >= count; };
    mutex_.Await(absl::Condition(&reached));
  }

  int num_waits() const {
    absl::MutexLock lock(&mutex_);
    return num_waits_;
  }

 private:
  absl::Status Status() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ready_ ? absl::OkStatus()
                  : absl::UnavailableError("shard 1/2 (unix:/run/e1.sock): no usable replica");
  }

  mutable absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = true;
  int num_waits_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace banyan::trunk
