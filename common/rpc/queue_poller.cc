#include "common/rpc/queue_poller.h"

#include <grpc/support/time.h>
#include <sched.h>

#include <algorithm>

namespace banyan {
namespace {

using NextStatus = grpc::CompletionQueue::NextStatus;

// A yield that takes longer has run somebody else: a poller like this one comes back within some
// 10 us, so it is enough to sleep in this wait.
constexpr std::chrono::microseconds kForeignYield(15);
// A computing thread keeps the CPU for its slice, milliseconds: no place to yield often. Then the
// next waits sleep at once; as many, doubled while it happens again.
constexpr std::chrono::microseconds kForeignSlice(500);
constexpr int kFirstSkip = 16;
constexpr int kLastSkip = 1024;

gpr_timespec ToGpr(QueuePoller::Clock::time_point deadline) {
  if (deadline == QueuePoller::Clock::time_point::max()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const auto left =
      std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - QueuePoller::Clock::now());
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(std::max<int64_t>(left.count(), 0), GPR_TIMESPAN));
}

}  // namespace

QueuePoller::QueuePoller(grpc::CompletionQueue* queue, Clock::duration spin)
    : queue_(queue), spin_(spin), next_skip_(kFirstSkip) {}

NextStatus QueuePoller::Poll(void** tag, bool* ok) {
  return queue_->AsyncNext(tag, ok, gpr_inf_past(GPR_CLOCK_MONOTONIC));
}

NextStatus QueuePoller::Next(void** tag, bool* ok, Clock::time_point deadline) {
  if (NextStatus status = Poll(tag, ok); status != grpc::CompletionQueue::TIMEOUT) return status;
  if (skip_ > 0) {
    --skip_;
    return queue_->AsyncNext(tag, ok, ToGpr(deadline));
  }
  Clock::time_point now = Clock::now();
  const Clock::time_point spin_end = std::min(deadline, now + spin_);
  while (now < spin_end) {
    sched_yield();
    const Clock::time_point after = Clock::now();
    const bool foreign = after - now > kForeignYield;
    if (after - now > kForeignSlice) {
      skip_ = next_skip_;
      next_skip_ = std::min(next_skip_ * 2, kLastSkip);
    }
    if (NextStatus status = Poll(tag, ok); status != grpc::CompletionQueue::TIMEOUT) {
      if (!foreign) next_skip_ = kFirstSkip;
      return status;
    }
    if (foreign) break;
    now = Clock::now();
  }
  return queue_->AsyncNext(tag, ok, ToGpr(deadline));
}

}  // namespace banyan
