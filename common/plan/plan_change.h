// A change of one flag under which a refused plan would hold.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace banyan {

struct PlanChange {
  std::string flag;   // "--vram_budget"
  std::string value;  // as the flag takes it
  std::string note;   // "6.21 GiB"; may be empty
};

// `refused` with "; any one of these would work: --vram_budget 6668288000 (6.21 GiB), ..." before
// its table, and a line of its own for none.
absl::Status WithChanges(const absl::Status& refused, const std::vector<PlanChange>& changes);

}  // namespace banyan
