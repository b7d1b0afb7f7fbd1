// Shapes and limits of the trunk's operations: what its scratch and its state are sized by.
#pragma once

#include <cstdint>

#include "common/tensor/dtype.h"

namespace banyan {

inline constexpr int32_t kKvPageTokens = 64;  // tokens of one KV page
inline constexpr int32_t kMaxTopLogits = 64;  // of a row that come from the device in their order
inline constexpr int32_t kMaxStepParts = 2;   // docs/adr/two-halves.md

struct AttentionShape {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_heads; head n reads kv head n / (num_heads / kv_heads)
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;  // even, <= head_dim
  float eps = 0;
  DType cache_dtype = DType::kF32;  // of keys and values in pages: f32, or bf16 on a GPU
};

struct DeltaNetShape {
  int32_t num_key_heads = 0;
  int32_t num_value_heads = 0;  // a multiple of num_key_heads; head h reads key head h / ratio
  int32_t key_head_dim = 0;
  int32_t value_head_dim = 0;
  int32_t conv_taps = 0;
  float eps = 0;

  int32_t ratio() const { return num_value_heads / num_key_heads; }
  int32_t key_dim() const { return num_key_heads * key_head_dim; }
  int32_t value_dim() const { return num_value_heads * value_head_dim; }
  int32_t conv_dim() const { return 2 * key_dim() + value_dim(); }
  int32_t qkvz_dim() const { return 2 * key_dim() + 2 * value_dim(); }
  int64_t state_floats() const { return int64_t{num_value_heads} * key_head_dim * value_head_dim; }
  int64_t conv_state_floats() const { return int64_t{conv_taps - 1} * conv_dim(); }
};

// Routed experts that the trunk computes itself (docs/adr/prompt-experts.md).
struct HostExpertShape {
  int32_t hidden_size = 0;
  int32_t width = 0;  // moe_intermediate_size; 0: there are none
  int32_t top_k = 0;
};

// What a backend must know before the first step, to set its scratch aside.
struct OpLimits {
  int32_t max_rows = 0;
  int32_t max_segments = 0;
  int32_t max_position = 0;
  int32_t num_experts = 0;
  AttentionShape attention;  // num_heads 0: no such layer
  DeltaNetShape delta_net;   // num_value_heads 0: no such layer
  // Rows of logits, and logits of one on this device. 0: TopLogits is not called.
  int32_t max_logits_rows = 0;
  int32_t vocab_size = 0;
  int32_t max_columns = 0;  // of a matrix that max_rows rows are multiplied by
  // Devices that share the model, and the most values of an AllReduce.
  int32_t tensor_parallel = 1;
  int64_t max_reduced = 0;
  int32_t max_parts = 1;              // that a step may run in, kMaxStepParts at the most
  HostExpertShape host_experts = {};  // of any pool format
};

}  // namespace banyan
