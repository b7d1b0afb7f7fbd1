// An engine under a test's control: the test plays the step loop.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "services/trunk/engine/engine.h"

namespace banyan::trunk {

inline FinishInfo Ended(FinishReason reason, int32_t stop_token_id = -1) {
  FinishInfo info;
  info.reason = reason;
  info.stop_token_id = stop_token_id;
  return info;
}

// Thread-safe. Handles count from 1 in order of submission.
class ScriptedEngine final : public Engine {
 public:
  absl::StatusOr<int64_t> Submit(Request request,
                                 std::shared_ptr<RequestListener> listener) override {
    absl::MutexLock lock(&mutex_);
    if (!refusal_.ok()) return refusal_;
    requests_.push_back(std::move(request));
    listeners_.push_back(std::move(listener));
    return static_cast<int64_t>(requests_.size());
  }
  void Cancel(int64_t handle) override {
    absl::MutexLock lock(&mutex_);
    cancelled_.insert(handle);
  }
  Snapshot GetSnapshot() const override { return {}; }
  void Drain(absl::Time /*deadline*/) override {}

  void Refuse(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    refusal_ = std::move(status);
  }
  // Waits until it has been submitted.
  Request AwaitRequest(int64_t handle) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, handle]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return static_cast<int64_t>(requests_.size()) >= handle;
    };
    mutex_.Await(absl::Condition(&there));
    return requests_[static_cast<size_t>(handle) - 1];
  }
  RequestListener& listener(int64_t handle) {
    absl::MutexLock lock(&mutex_);
    CHECK(handle >= 1 && handle <= static_cast<int64_t>(listeners_.size()));
    return *listeners_[static_cast<size_t>(handle) - 1];
  }
  void AwaitCancel(int64_t handle) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, handle]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return cancelled_.count(handle) != 0;
    };
    mutex_.Await(absl::Condition(&there));
  }
  int64_t num_requests() const {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(requests_.size());
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  std::vector<Request> requests_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<RequestListener>> listeners_ ABSL_GUARDED_BY(mutex_);
  std::set<int64_t> cancelled_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan::trunk
