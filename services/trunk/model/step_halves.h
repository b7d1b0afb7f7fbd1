// Cuts the plan of a large step in two halves that run one behind the other, so that the experts
// work on one while the device works on the other (docs/adr/two-halves.md).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

class StepHalves {
 public:
  // Sets aside what Cut needs for plans of so many segments.
  explicit StepHalves(int32_t max_segments);

  // Cuts `plan` between two segments or at a multiple of kHalfGridRows rows of one, as near to its
  // middle as that goes, the first such place if two are. What is a segment's second part goes on
  // where the first ends, as the next step would. False: there is no such place.
  bool Cut(const StepPlan& plan);

  // After Cut has returned true: the halves, valid as long as that plan and until the next Cut.
  // Their rows, segments and pages are numbered from 0; the rows that the first one has come first.
  const StepPlan& half(int32_t which) const { return halves_[static_cast<size_t>(which)]; }

 private:
  std::array<StepPlan, 2> halves_;
  std::vector<PlanSegment> segments_;  // of the first half, then of the second
};

}  // namespace banyan::trunk
