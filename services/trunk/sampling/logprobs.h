// Log-probabilities of the model's own distribution: softmax over the whole row of logits, before
// temperature, penalties and bias.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan::trunk {

inline constexpr int32_t kMaxLogprobs = 20;  // alternatives per token

struct TokenLogprobs {
  int32_t token_id = 0;
  float logprob = 0;
  std::vector<int32_t> top_ids;  // descending, ties by lower id
  std::vector<float> top_logprobs;
};

// logits              [vocab_size] f32, all of them in the normaliser
// sampled_vocab_size  alternatives are ids below it: no text exists for the others
// num_top             0..kMaxLogprobs alternatives
// kInternal: a logit is NaN or infinite. Thread-safe.
absl::StatusOr<TokenLogprobs> ComputeLogprobs(std::span<const float> logits,
                                              int32_t sampled_vocab_size, int32_t token_id,
                                              int32_t num_top);

}  // namespace banyan::trunk
