#include "services/trunk/ops/cpu/router_topk.h"

#include <algorithm>
#include <cmath>

namespace banyan::trunk::cpu {

void RouterTopKRow(const float* logits, int32_t num_experts, int32_t top_k, bool renormalize,
                   float* probabilities, uint16_t* ids, float* weights) {
  const float max = *std::max_element(logits, logits + num_experts);
  float sum = 0;
  for (int32_t e = 0; e < num_experts; ++e) {
    probabilities[e] = std::exp(logits[e] - max);
    sum += probabilities[e];
  }
  for (int32_t e = 0; e < num_experts; ++e) probabilities[e] /= sum;

  // Insertion into the sorted list of the best so far; an equal one stays behind the earlier.
  int32_t count = 0;
  for (int32_t e = 0; e < num_experts; ++e) {
    const float p = probabilities[e];
    if (count == top_k && !(p > weights[count - 1])) continue;
    int32_t at = count < top_k ? count++ : count - 1;
    for (; at > 0 && p > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      ids[at] = ids[at - 1];
    }
    weights[at] = p;
    ids[at] = static_cast<uint16_t>(e);
  }
  if (!renormalize) return;
  float total = 0;
  for (int32_t i = 0; i < top_k; ++i) total += weights[i];
  for (int32_t i = 0; i < top_k; ++i) weights[i] /= total;
}

}  // namespace banyan::trunk::cpu
