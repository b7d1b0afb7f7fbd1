// Work a rendering has done, against a limit. Everything that takes time or memory in proportion to
// its input charges it first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace banyan::jinja {

inline constexpr size_t kMaxTextBytes = size_t{16} << 20;

class Budget {
 public:
  explicit Budget(int64_t max_steps) : max_steps_(max_steps), left_(max_steps) {}

  // kResourceExhausted once the limit is passed.
  absl::Status Charge(int64_t steps);
  // For text of `num_bytes`, read or made: at most kMaxTextBytes at a time.
  absl::Status ChargeText(size_t num_bytes);

 private:
  const int64_t max_steps_;
  int64_t left_;
};

}  // namespace banyan::jinja
