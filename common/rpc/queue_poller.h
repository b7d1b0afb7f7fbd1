// Waits for a completion queue's next event: polls for a bounded time, then sleeps in the kernel.
#pragma once

#include <grpcpp/completion_queue.h>

#include <chrono>

#include "common/rpc/yielding_spin.h"

namespace banyan {

// Owned by one thread.
class QueuePoller {
 public:
  using Clock = std::chrono::steady_clock;

  // `queue` is borrowed.
  QueuePoller(grpc::CompletionQueue* queue, Clock::duration spin);

  // As grpc::CompletionQueue::AsyncNext. Spins at most `spin`, then blocks until `deadline`, which
  // is kept to about a millisecond.
  grpc::CompletionQueue::NextStatus Next(void** tag, bool* ok, Clock::time_point deadline);
  // What is there now; never waits.
  grpc::CompletionQueue::NextStatus Poll(void** tag, bool* ok);

 private:
  grpc::CompletionQueue* const queue_;
  YieldingSpin spin_;
};

}  // namespace banyan
