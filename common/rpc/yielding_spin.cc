#include "common/rpc/yielding_spin.h"

#include <sched.h>

#include <algorithm>

namespace banyan {
namespace {

// A yield that takes longer has run somebody else: a poller like this one comes back within some
// 10 us, so it is enough to sleep in this wait.
constexpr std::chrono::microseconds kForeignYield(15);
// A computing thread keeps the CPU for its slice, milliseconds: no place to yield often. Then the
// next waits sleep at once; as many, doubled while it happens again.
constexpr std::chrono::microseconds kForeignSlice(500);
constexpr int kLastSkip = 1024;
// A yield costs the call about 0.5 us each end even when nobody takes the CPU: where that has been
// so for a while, it is offered once in so many polls (1.2 us each).
constexpr int kMostPolls = 8;

}  // namespace

YieldingSpin::YieldingSpin(Clock::duration spin) : spin_(spin) {}

YieldingSpin::Clock::time_point YieldingSpin::End(Clock::time_point deadline) const {
  return std::min(deadline, Clock::now() + spin_);
}

bool YieldingSpin::YieldWasTaken() {
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

}  // namespace banyan
