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
// A yield costs the call about 0.5 us each end even when nobody takes the CPU: where that has been
// so for a while, it is offered once in so many polls (1.2 us each).
constexpr int kMostPolls = 8;

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

bool QueuePoller::YieldWasTaken() {
  const Clock::time_point before = Clock::now();
  sched_yield();
  const Clock::duration took = Clock::now() - before;
  if (took > kForeignSlice) {
    skip_ = next_skip_;
    next_skip_ = std::min(next_skip_ * 2, kLastSkip);
  }
  const bool foreign = took > kForeignYield;
  polls_per_yield_ = foreign ? 1 : std::min(polls_per_yield_ * 2, kMostPolls);
  return foreign;
}

NextStatus QueuePoller::Next(void** tag, bool* ok, Clock::time_point deadline) {
  if (NextStatus status = Poll(tag, ok); status != grpc::CompletionQueue::TIMEOUT) return status;
  if (skip_ > 0) {
    --skip_;
    return queue_->AsyncNext(tag, ok, ToGpr(deadline));
  }
  const Clock::time_point spin_end = std::min(deadline, Clock::now() + spin_);
  for (int polls = 1; Clock::now() < spin_end; ++polls) {
    bool foreign = false;
    if (polls % polls_per_yield_ == 0) foreign = YieldWasTaken();
    if (NextStatus status = Poll(tag, ok); status != grpc::CompletionQueue::TIMEOUT) {
      if (!foreign) next_skip_ = kFirstSkip;
      return status;
    }
    if (foreign) break;
  }
  return queue_->AsyncNext(tag, ok, ToGpr(deadline));
}

}  // namespace banyan
