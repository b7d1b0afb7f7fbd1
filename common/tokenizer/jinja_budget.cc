#include "common/tokenizer/jinja_budget.h"

#include "common/base/strings.h"

namespace banyan::jinja {

absl::Status Budget::Charge(int64_t steps) {
  left_ -= steps;
  if (left_ >= 0) return absl::OkStatus();
  left_ = 0;
  return StatusF(absl::StatusCode::kResourceExhausted, "more than {} steps", max_steps_);
}

absl::Status Budget::ChargeText(size_t num_bytes) {
  if (num_bytes > kMaxTextBytes) {
    return StatusF(absl::StatusCode::kResourceExhausted, "a text of {} bytes, at most {} allowed",
                   num_bytes, kMaxTextBytes);
  }
  return Charge(1 + static_cast<int64_t>(num_bytes / 16));
}

}  // namespace banyan::jinja
