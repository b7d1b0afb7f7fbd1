// Polls before it sleeps: a thread that waits for another one of the same step.
#pragma once

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace banyan::trunk {

// Polls until `done` or for `spin`; whether it was done.
template <typename Done>
bool SpinUntil(absl::Duration spin, const Done& done) {
  constexpr int kLooksPerClock = 64;
  if (done()) return true;
  if (spin <= absl::ZeroDuration()) return false;
  const absl::Time until = absl::Now() + spin;
  while (true) {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (done()) return true;
    }
    if (absl::Now() >= until) return false;
  }
}

// The same, then sleeps. What makes `done` true is written while `mutex` is held.
template <typename Done>
void AwaitWithSpin(absl::Duration spin, absl::Mutex* mutex, const Done& done) {
  if (SpinUntil(spin, done)) return;
  const absl::MutexLock lock(mutex);
  mutex->Await(absl::Condition(&done));
}

}  // namespace banyan::trunk
