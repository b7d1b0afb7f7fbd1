// Softmax, top-k and renormalisation of one row of router logits. Contract: Backend::RouterTopK.
#pragma once

#include <cstdint>

namespace banyan::trunk::cpu {

//   logits [num_experts]   probabilities [num_experts] scratch   ids, weights [top_k]
void RouterTopKRow(const float* logits, int32_t num_experts, int32_t top_k, bool renormalize,
                   float* probabilities, uint16_t* ids, float* weights);

}  // namespace banyan::trunk::cpu
