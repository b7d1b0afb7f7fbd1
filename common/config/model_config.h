// config.json as a validated value: every field the forward pass needs, one mixer and one MLP kind
// per layer. Reads files of transformers 4.57 and 5 (model spec section 1).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/quantization_config.h"

namespace banyan {

enum class MixerKind : uint8_t { kLinearAttention, kFullAttention };
enum class MlpKind : uint8_t { kMoe, kDense };

// Fields carry the Hugging Face key. Ranges are checked by ParseModelConfig, so sizes computed from
// them neither overflow nor vanish.
struct ModelConfig {
  std::string model_type;
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t intermediate_size = 0;  // of dense MLP layers
  float rms_norm_eps = 1e-6f;
  int32_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;

  // Full attention.
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;  // partial_rotary_factor * head_dim, even
  double rope_theta = 1e4;

  // Gated DeltaNet.
  int32_t linear_num_key_heads = 0;
  int32_t linear_num_value_heads = 0;  // a multiple of linear_num_key_heads
  int32_t linear_key_head_dim = 0;
  int32_t linear_value_head_dim = 0;
  int32_t linear_conv_kernel_dim = 0;

  // Mixture of experts.
  int32_t num_experts = 0;
  int32_t num_experts_per_tok = 0;
  int32_t moe_intermediate_size = 0;
  int32_t shared_expert_intermediate_size = 0;
  bool norm_topk_prob = true;

  std::vector<MixerKind> mixers;  // [num_hidden_layers]
  std::vector<MlpKind> mlps;      // [num_hidden_layers]

  std::vector<int32_t> eos_token_ids;  // of config.json; generation_config.json adds to them

  std::optional<QuantizationConfig> quantization;  // compared with the tensors, decides nothing

  int32_t linear_key_dim() const { return linear_num_key_heads * linear_key_head_dim; }
  int32_t linear_value_dim() const { return linear_num_value_heads * linear_value_head_dim; }
  int32_t linear_conv_dim() const { return 2 * linear_key_dim() + linear_value_dim(); }
};

// `source` names the text in messages. kInvalidArgument: malformed JSON, a missing key, a value out
// of range, contradictions (key, value, what it contradicts); kUnimplemented: another architecture,
// a rope type, activation or quantization_config that is not supported, named as such.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json, std::string_view source);

// Reads DIRECTORY/config.json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

}  // namespace banyan
