// How the next token is chosen from the logits. Resolved: every default has been filled in.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace banyan::trunk {

// Applied in this order: logit bias, penalties, temperature, top-k, top-p, min-p, draw.
struct SamplingParams {
  float temperature = 1.0f;  // 0 (and anything below 1e-5): greedy
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output: positive logits / p, negative * p
  float presence_penalty = 0.0f;    // over the output: subtracted once from each id seen
  float frequency_penalty = 0.0f;   // over the output: subtracted for each occurrence
  uint64_t seed = 0;                // a client that gives none gets RandomSeed()
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // (id, added to its logit)
};

// kInvalidArgument names the field, its value and the range. Ranges: temperature 0..1000, top_k
// from 0, top_p and min_p 0..1, repetition_penalty 0.01..100, presence and frequency -100..100,
// logit bias -1000..1000 on ids below `vocab_size`. NaN is outside all of them.
absl::Status ValidateSamplingParams(const SamplingParams& params, int32_t vocab_size);

// From the operating system's entropy; for requests without a seed. Thread-safe.
uint64_t RandomSeed();

}  // namespace banyan::trunk
