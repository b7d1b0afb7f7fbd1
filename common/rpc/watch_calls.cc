#include "common/rpc/watch_calls.h"

#include "common/base/strings.h"

namespace banyan {

grpc::Status WatchCalls::Enter() {
  absl::MutexLock lock(&mutex_);
  if (stopped_) return Stopping();
  if (num_calls_ == kMaxCalls) {
    return grpc::Status(
        grpc::StatusCode::RESOURCE_EXHAUSTED,
        fmt::format("{} clients watch already, the most this host serves", int{kMaxCalls}));
  }
  ++num_calls_;
  return grpc::Status::OK;
}

void WatchCalls::Leave() {
  absl::MutexLock lock(&mutex_);
  --num_calls_;
}

void WatchCalls::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
}

bool WatchCalls::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

bool WatchCalls::WaitUntilNone(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(this, &WatchCalls::None), deadline);
}

grpc::Status WatchCalls::Stopping() {
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "this host is stopping");
}

}  // namespace banyan
