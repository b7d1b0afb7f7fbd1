#include "common/config/model_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/json_object.h"
#include "common/io/mapped_file.h"

namespace banyan {
namespace {

// Generous against the 80B (151936, 2048, 48, 16 heads of 256, 512 experts of 512), small enough
// that every product of a tensor's dimensions stays below 2^53 and every derived int32 width fits.
constexpr int64_t kMaxVocabSize = 1 << 24;
constexpr int64_t kMaxWidth = 1 << 18;  // hidden_size and FFN widths
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxConvKernel = 16;
constexpr int64_t kMaxExperts = 65535;  // ids travel as u16, and 0xffff means "another shard"
constexpr int64_t kMaxLayersTimesExperts = 1 << 20;
constexpr int64_t kMaxPositions = 1 << 30;

absl::Status Unimplemented(const JsonObject& object, std::string_view key,
                           const nlohmann::json& value, std::string_view supported) {
  return StatusF(absl::StatusCode::kUnimplemented, "{}: {} is {}, which is not supported ({})",
                 object.place(), key, Describe(value), supported);
}

absl::Status ReadInt32(const JsonObject& object, std::string_view key, int64_t min, int64_t max,
                       int32_t* out, std::optional<int64_t> default_value = std::nullopt) {
  ASSIGN_OR_RETURN(const int64_t value, object.Int(key, min, max, default_value));
  *out = static_cast<int32_t>(value);
  return absl::OkStatus();
}

// What would need another forward pass.
absl::Status CheckSupported(const JsonObject& root) {
  if (const nlohmann::json* architectures = root.Find("architectures")) {
    if (!architectures->is_array()) {
      return root.Error("architectures",
                        fmt::format("is {}, expected a list of names", Describe(*architectures)));
    }
    if (std::find(architectures->begin(), architectures->end(), "Qwen3NextForCausalLM") ==
        architectures->end()) {
      return Unimplemented(root, "architectures", *architectures,
                           "supported: Qwen3NextForCausalLM");
    }
  }
  const nlohmann::json* const model_type = root.Find("model_type");
  if (model_type == nullptr) return root.Error("model_type", "is missing");
  if (*model_type != "qwen3_next") {
    return Unimplemented(root, "model_type", *model_type, "supported: qwen3_next");
  }
  if (const auto* act = root.Find("hidden_act"); act != nullptr && *act != "silu") {
    return Unimplemented(root, "hidden_act", *act, "supported: silu");
  }
  // {key, the only value we implement}
  constexpr std::pair<const char*, bool> kFixed[] = {{"attention_bias", false},
                                                     {"use_sliding_window", false},
                                                     {"attn_output_gate", true},
                                                     {"layer_scale", false}};
  for (const auto& [key, supported] : kFixed) {
    ASSIGN_OR_RETURN(const bool value, root.Bool(key, supported));
    if (value != supported) {
      return Unimplemented(root, key, value, fmt::format("supported: {}", supported));
    }
  }
  return absl::OkStatus();
}

// rope_parameters (transformers 5), else rope_scaling, else the top level (4.57).
absl::Status ReadRope(const JsonObject& root, ModelConfig* config) {
  std::vector<JsonObject> places;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const nlohmann::json* const rope = root.Find(key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) {
      return root.Error(key, fmt::format("is {}, expected an object", Describe(*rope)));
    }
    places.emplace_back(*rope, fmt::format("{}: {}", root.place(), key));
    for (const char* type_key : {"rope_type", "type"}) {
      const nlohmann::json* const type = places.back().Find(type_key);
      if (type != nullptr && *type != "default") {
        return Unimplemented(places.back(), type_key, *type, "supported: default");
      }
    }
    if (const nlohmann::json* sections = places.back().Find("mrope_section")) {
      return Unimplemented(places.back(), "mrope_section", *sections, "supported: none");
    }
  }
  places.push_back(root);
  const auto place_of = [&places](std::string_view key) -> const JsonObject& {
    for (const JsonObject& place : places) {
      if (place.Find(key) != nullptr) return place;
    }
    return places.back();
  };
  ASSIGN_OR_RETURN(config->rope_theta, place_of("rope_theta").Number("rope_theta", 1.0, 1e15, 1e4));
  const JsonObject& factor_place = place_of("partial_rotary_factor");
  ASSIGN_OR_RETURN(const double factor,
                   factor_place.Number("partial_rotary_factor", 0.0, 1.0, 0.25));
  config->rotary_dim = static_cast<int32_t>(config->head_dim * factor);  // truncated, as in HF
  if (config->rotary_dim < 2 || config->rotary_dim % 2 != 0) {
    return factor_place.Error(
        "partial_rotary_factor",
        fmt::format("{} of head_dim {} gives {} rotary dimensions, expected an even number >= 2",
                    factor, config->head_dim, config->rotary_dim));
  }
  return absl::OkStatus();
}

absl::Status ReadAttention(const JsonObject& root, ModelConfig* config) {
  RETURN_IF_ERROR(
      ReadInt32(root, "num_attention_heads", 1, kMaxHeads, &config->num_attention_heads));
  RETURN_IF_ERROR(
      ReadInt32(root, "num_key_value_heads", 1, kMaxHeads, &config->num_key_value_heads));
  if (config->num_attention_heads % config->num_key_value_heads != 0) {
    return root.Error("num_attention_heads",
                      fmt::format("is {}, not a multiple of num_key_value_heads {}",
                                  config->num_attention_heads, config->num_key_value_heads));
  }
  RETURN_IF_ERROR(ReadInt32(root, "head_dim", 2, kMaxHeadDim, &config->head_dim));
  return ReadRope(root, config);
}

absl::Status ReadLinearAttention(const JsonObject& root, ModelConfig* config) {
  RETURN_IF_ERROR(
      ReadInt32(root, "linear_num_key_heads", 1, kMaxHeads, &config->linear_num_key_heads));
  RETURN_IF_ERROR(
      ReadInt32(root, "linear_num_value_heads", 1, kMaxHeads, &config->linear_num_value_heads));
  if (config->linear_num_value_heads % config->linear_num_key_heads != 0) {
    return root.Error("linear_num_value_heads",
                      fmt::format("is {}, not a multiple of linear_num_key_heads {}",
                                  config->linear_num_value_heads, config->linear_num_key_heads));
  }
  RETURN_IF_ERROR(
      ReadInt32(root, "linear_key_head_dim", 1, kMaxHeadDim, &config->linear_key_head_dim));
  RETURN_IF_ERROR(
      ReadInt32(root, "linear_value_head_dim", 1, kMaxHeadDim, &config->linear_value_head_dim));
  return ReadInt32(root, "linear_conv_kernel_dim", 2, kMaxConvKernel,
                   &config->linear_conv_kernel_dim);
}

absl::Status ReadMoe(const JsonObject& root, ModelConfig* config) {
  RETURN_IF_ERROR(ReadInt32(root, "num_experts", 1, kMaxExperts, &config->num_experts));
  if (int64_t{config->num_hidden_layers} * config->num_experts > kMaxLayersTimesExperts) {
    return root.Error(
        "num_experts",
        fmt::format("is {} in {} layers, expected at most {} experts in all", config->num_experts,
                    config->num_hidden_layers, kMaxLayersTimesExperts));
  }
  RETURN_IF_ERROR(
      ReadInt32(root, "num_experts_per_tok", 1, kMaxExperts, &config->num_experts_per_tok));
  if (config->num_experts_per_tok > config->num_experts) {
    return root.Error("num_experts_per_tok",
                      fmt::format("is {}, more than num_experts {}", config->num_experts_per_tok,
                                  config->num_experts));
  }
  RETURN_IF_ERROR(
      ReadInt32(root, "moe_intermediate_size", 1, kMaxWidth, &config->moe_intermediate_size));
  RETURN_IF_ERROR(ReadInt32(root, "shared_expert_intermediate_size", 1, kMaxWidth,
                            &config->shared_expert_intermediate_size));
  ASSIGN_OR_RETURN(config->norm_topk_prob, root.Bool("norm_topk_prob", true));
  return absl::OkStatus();
}

absl::StatusOr<MixerKind> ParseLayerType(const JsonObject& root, size_t layer,
                                         const nlohmann::json& value) {
  if (value == "linear_attention" || value == "mamba") return MixerKind::kLinearAttention;
  if (value == "full_attention" || value == "attention") return MixerKind::kFullAttention;
  const std::string key = fmt::format("layer_types[{}]", layer);
  constexpr char kSupported[] = "linear_attention or full_attention";
  if (value == "sliding_attention" || value == "chunked_attention") {
    return Unimplemented(root, key, value, fmt::format("supported: {}", kSupported));
  }
  return root.Error(key, fmt::format("is {}, expected {}", Describe(value), kSupported));
}

// layer_types if present, else every full_attention_interval-th layer is full attention.
absl::Status ReadMixers(const JsonObject& root, ModelConfig* config) {
  const auto num_layers = static_cast<size_t>(config->num_hidden_layers);
  ASSIGN_OR_RETURN(const int64_t interval,
                   root.Int("full_attention_interval", 1, kMaxLayers + 1, 4));
  const nlohmann::json* const types = root.Find("layer_types");
  if (types == nullptr) {
    for (size_t layer = 0; layer < num_layers; ++layer) {
      const bool full = (layer + 1) % static_cast<size_t>(interval) == 0;
      config->mixers.push_back(full ? MixerKind::kFullAttention : MixerKind::kLinearAttention);
    }
    return absl::OkStatus();
  }
  if (!types->is_array()) {
    return root.Error("layer_types", fmt::format("is {}, expected a list", Describe(*types)));
  }
  if (types->size() != num_layers) {
    return root.Error("layer_types", fmt::format("has {} entries, but num_hidden_layers is {}",
                                                 types->size(), num_layers));
  }
  for (size_t layer = 0; layer < num_layers; ++layer) {
    ASSIGN_OR_RETURN(const MixerKind kind, ParseLayerType(root, layer, (*types)[layer]));
    config->mixers.push_back(kind);
  }
  return absl::OkStatus();
}

// Layer i is a mixture of experts unless mlp_only_layers has it or decoder_sparse_step skips it.
absl::Status ReadMlps(const JsonObject& root, ModelConfig* config) {
  ASSIGN_OR_RETURN(const int64_t step, root.Int("decoder_sparse_step", 1, kMaxLayers + 1, 1));
  ASSIGN_OR_RETURN(const std::vector<int32_t> dense,
                   root.IntList("mlp_only_layers", 0, config->num_hidden_layers - 1,
                                /*allow_single=*/false));
  bool any_dense = false;
  for (int32_t layer = 0; layer < config->num_hidden_layers; ++layer) {
    const bool moe =
        (layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
    config->mlps.push_back(moe ? MlpKind::kMoe : MlpKind::kDense);
    any_dense |= !moe;
  }
  // Published files carry the key although no layer uses it; then its absence is fine too.
  const std::optional<int64_t> unused = any_dense ? std::nullopt : std::optional<int64_t>(5632);
  return ReadInt32(root, "intermediate_size", 1, kMaxWidth, &config->intermediate_size, unused);
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json, std::string_view source) {
  ASSIGN_OR_RETURN(const nlohmann::json document, ParseJsonObject(json, source));
  const JsonObject root(document, std::string(source));
  RETURN_IF_ERROR(CheckSupported(root));

  ModelConfig config;
  ASSIGN_OR_RETURN(config.quantization, ReadQuantizationConfig(root));
  ASSIGN_OR_RETURN(config.model_type, root.String("model_type"));
  RETURN_IF_ERROR(ReadInt32(root, "vocab_size", 1, kMaxVocabSize, &config.vocab_size));
  RETURN_IF_ERROR(ReadInt32(root, "hidden_size", 1, kMaxWidth, &config.hidden_size));
  RETURN_IF_ERROR(ReadInt32(root, "num_hidden_layers", 1, kMaxLayers, &config.num_hidden_layers));
  RETURN_IF_ERROR(ReadInt32(root, "max_position_embeddings", 1, kMaxPositions,
                            &config.max_position_embeddings, 32768));
  ASSIGN_OR_RETURN(const double eps, root.Number("rms_norm_eps", 1e-12, 0.1, 1e-6));
  config.rms_norm_eps = static_cast<float>(eps);
  ASSIGN_OR_RETURN(config.tie_word_embeddings, root.Bool("tie_word_embeddings", false));
  RETURN_IF_ERROR(ReadAttention(root, &config));
  RETURN_IF_ERROR(ReadLinearAttention(root, &config));
  RETURN_IF_ERROR(ReadMoe(root, &config));
  RETURN_IF_ERROR(ReadMixers(root, &config));
  RETURN_IF_ERROR(ReadMlps(root, &config));
  ASSIGN_OR_RETURN(config.eos_token_ids,
                   root.IntList("eos_token_id", 0, config.vocab_size - 1, /*allow_single=*/true));
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  return ParseModelConfig(text, path);
}

}  // namespace banyan
