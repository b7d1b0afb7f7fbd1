// Waits for a completion queue's next event: polls for a bounded time, then sleeps in the kernel.
#pragma once

#include <grpcpp/completion_queue.h>

#include <chrono>

namespace banyan {

// A wake-up from the kernel costs 12-30 us, an expert call 25 us: so the one thread of a queue
// polls for about as long as its peer may think. On a machine with more such threads than CPUs
// polling would starve the ones that work; therefore the CPU is yielded between polls, and polling
// ends early when the yield shows that somebody else wanted it. Owned by one thread.
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
  // Offers the CPU to others; true when somebody took it.
  bool YieldWasTaken();

  grpc::CompletionQueue* const queue_;
  const Clock::duration spin_;
  int skip_ = 0;   // waits that do not spin because the CPUs are crowded
  int next_skip_;  // as many after the next sign of it
  int polls_per_yield_ = 1;
};

}  // namespace banyan
