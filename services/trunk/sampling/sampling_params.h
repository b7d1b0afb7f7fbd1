// How the next token is chosen from the logits. Resolved: every default has been filled in.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace banyan::trunk {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
};

}  // namespace banyan::trunk
