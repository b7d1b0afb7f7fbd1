// The buffers a step works in, for BufferRows rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/plan/decoder_memory.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// An array with two sides (SharedBuffer). Stands for its device side.
template <typename T>
struct Shared {
  T* device = nullptr;
  T* host = nullptr;

  operator T*() const { return device; }  // NOLINT: operations take device pointers
  SharedBuffer buffer() const {
    return {reinterpret_cast<std::byte*>(device), reinterpret_cast<std::byte*>(host)};
  }
};

// Some lie in the same place (ActivationSizes::ForEachStage).
struct Activations {
  // All f32 [BufferRows, ...]; widths as in ops.h.
  float* hidden = nullptr;       // residual stream
  float* mixer_out = nullptr;    // [hidden_size]
  float* final_out = nullptr;    // [hidden_size], after the final norm
  float* logits_rows = nullptr;  // [max_logits_rows, hidden_size]
  float* logits = nullptr;       // [max_logits_rows, vocab_size]
  Shared<float> top_scores;      // [max_logits_rows, kMaxTopLogits], as top_ids
  Shared<int32_t> top_ids;
  Shared<int32_t> top_bounded;  // [max_logits_rows]

  // Gated DeltaNet.
  float* qkvz = nullptr;
  float* ba = nullptr;
  float* qkv = nullptr;
  float* log_decay = nullptr;
  float* beta = nullptr;
  float* delta_out = nullptr;

  // Gated attention.
  float* q_gate = nullptr;
  float* k = nullptr;
  float* v = nullptr;
  float* attention_out = nullptr;

  // MLP. The expert transport reads and writes the host sides of the shared ones.
  float* normed = nullptr;  // [hidden_size]: input of mixer and experts
  // [hidden_size] of expert_rows_dtype: `normed` as the experts get it. kF32: its device side is
  // `normed`. The decoder has the host side elsewhere where the transport lends memory to send
  // from.
  SharedBuffer expert_rows;
  DType expert_rows_dtype = DType::kF32;
  Shared<uint16_t> expert_ids;   // [top_k]
  Shared<float> expert_weights;  // [top_k]
  Shared<float> routed;          // [hidden_size]
  float* router_logits = nullptr;
  float* shared_gate_logit = nullptr;  // [1]
  float* ffn_gate = nullptr;           // [width]: shared expert or dense layer
  float* ffn_up = nullptr;             // [width]
  float* ffn_out = nullptr;            // [hidden_size]
};

// Places what ActivationBytes counts (common/plan/decoder_memory.h). kResourceExhausted.
absl::Status PlaceActivations(const ActivationSizes& sizes, Backend* backend, Activations* out);

// The same buffers from row `first` of `num_rows` on, for a half of a step; those of the logits as
// they are.
Activations ActivationsFrom(const Activations& all, const ActivationSizes& sizes, int32_t num_rows,
                            int32_t first);

}  // namespace banyan::trunk
