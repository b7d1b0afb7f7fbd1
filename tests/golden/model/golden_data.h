// Reference activations of a small model: golden.safetensors beside its checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace banyan::test {

struct GoldenData {
  int64_t num_tokens = 0;  // T
  int64_t num_decoded = 0;
  std::vector<int32_t> prompt;        // [T]
  std::vector<float> prefill_logits;  // [T, vocab_size]
  std::vector<int32_t> decode_ids;    // [D] greedy
  std::vector<float> decode_logits;   // [D, vocab_size]
  // [layers + 1, T, hidden_size]: embeddings, outputs of all layers but the last, final norm.
  std::vector<float> hidden_states;
  std::vector<int32_t> router_ids;    // [layers, T, top_k]
  std::vector<float> router_weights;  // [layers, T, top_k]
};

// Aborts when the file is not as described.
GoldenData ReadGolden(const std::string& directory);

}  // namespace banyan::test
