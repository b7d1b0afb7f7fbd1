// The highest logits of a row. Contract: Backend::TopLogits.
#pragma once

#include <cstdint>
#include <vector>

#include "services/trunk/sampling/row_math.h"

namespace banyan::trunk::cpu {

// False, and nothing written, if a logit is out of bounds. `scratch` is overwritten; it does not
// grow beyond kCpuTopLogits (common/plan/op_scratch.h).
bool TopLogitsRow(const float* logits, int32_t num_ids, int32_t k, std::vector<ScoredId>* scratch,
                  float* scores, int32_t* ids);

}  // namespace banyan::trunk::cpu
