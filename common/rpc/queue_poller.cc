#include "common/rpc/queue_poller.h"

#include <grpc/support/time.h>

#include <algorithm>

namespace banyan {
namespace {

using NextStatus = grpc::CompletionQueue::NextStatus;

gpr_timespec ToGpr(QueuePoller::Clock::time_point deadline) {
  if (deadline == QueuePoller::Clock::time_point::max()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const auto left =
      std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - QueuePoller::Clock::now());
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(std::max<int64_t>(left.count(), 0), GPR_TIMESPAN));
}

}  // namespace

QueuePoller::QueuePoller(grpc::CompletionQueue* queue, Clock::duration spin)
    : queue_(queue), spin_(spin) {}

NextStatus QueuePoller::Poll(void** tag, bool* ok) {
  return queue_->AsyncNext(tag, ok, gpr_inf_past(GPR_CLOCK_MONOTONIC));
}

NextStatus QueuePoller::Next(void** tag, bool* ok, Clock::time_point deadline) {
  NextStatus status = grpc::CompletionQueue::TIMEOUT;
  const auto poll = [&] {
    status = Poll(tag, ok);
    return status != grpc::CompletionQueue::TIMEOUT;
  };
  return spin_.Until(deadline, poll) ? status : queue_->AsyncNext(tag, ok, ToGpr(deadline));
}

}  // namespace banyan
