// Injectable monotonic time, so that time limits can be tested without waiting.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace banyan {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The machine's clock; thread-safe.
class SystemClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

}  // namespace banyan
