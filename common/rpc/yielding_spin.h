// Polling for a bounded time that gives way to others.
#pragma once

#include <chrono>

namespace banyan {

// A wake-up from the kernel costs 12-30 us, an expert call 25 us: so a thread that waits for a peer
// polls for about as long as that may think. On a machine with more such threads than CPUs polling
// would starve the ones that work; therefore the CPU is yielded between polls, and polling ends
// early when the yield shows that somebody else wanted it. Owned by one thread.
class YieldingSpin {
 public:
  using Clock = std::chrono::steady_clock;

  explicit YieldingSpin(Clock::duration spin);

  // Calls poll() until it returns true, for `spin` at most and not beyond `deadline`; whether it
  // did. A poll that takes about a microsecond keeps the yields' share small.
  template <typename Poll>
  bool Until(Clock::time_point deadline, const Poll& poll) {
    if (poll()) return true;
    if (skip_ > 0) {
      --skip_;
      return false;
    }
    const Clock::time_point end = End(deadline);
    for (int polls = 1; Clock::now() < end; ++polls) {
      bool foreign = false;
      if (polls % polls_per_yield_ == 0) foreign = YieldWasTaken();
      if (poll()) {
        if (!foreign) next_skip_ = kFirstSkip;
        return true;
      }
      if (foreign) break;
    }
    return false;
  }

 private:
  static constexpr int kFirstSkip = 16;

  Clock::time_point End(Clock::time_point deadline) const;
  // Offers the CPU to others; true when somebody took it.
  bool YieldWasTaken();

  const Clock::duration spin_;
  int skip_ = 0;                // waits that do not spin because the CPUs are crowded
  int next_skip_ = kFirstSkip;  // as many after the next sign of it
  int polls_per_yield_ = 1;
};

// Looks at memory that another thread writes, for about a microsecond; whether done() was true.
template <typename Done>
bool LookForAMicrosecond(const Done& done) {
  constexpr int kLooks = 32;  // with pauses of some 40 ns in between, more on newer processors
  for (int i = 0; i < kLooks; ++i) {
    if (done()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  return false;
}

}  // namespace banyan
