#include "common/synth/synth_config.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/json_object.h"
#include "common/io/mapped_file.h"

namespace banyan {
namespace {

using nlohmann::json;

constexpr std::pair<std::string_view, SynthFormat> kFormats[] = {
    {"bf16", SynthFormat::kBF16},
    {"nf4", SynthFormat::kNF4},
    {"nf4-single", SynthFormat::kNF4Single},
    {"int8", SynthFormat::kInt8},
    {"fp8", SynthFormat::kFP8}};

// Model spec 1.1, and the shape of the tests' small model.
constexpr std::pair<std::string_view, std::string_view> kGeometries[] = {
    {"qwen3-next-80b", R"({"architectures":["Qwen3NextForCausalLM"],"model_type":"qwen3_next",
      "dtype":"bfloat16","hidden_act":"silu","attention_bias":false,"bos_token_id":151643,
      "eos_token_id":151645,"vocab_size":151936,"hidden_size":2048,"num_hidden_layers":48,
      "intermediate_size":5120,"rms_norm_eps":1e-06,"num_attention_heads":16,
      "num_key_value_heads":2,"head_dim":256,"partial_rotary_factor":0.25,"rope_theta":10000000,
      "max_position_embeddings":262144,"full_attention_interval":4,"linear_num_key_heads":16,
      "linear_num_value_heads":32,"linear_key_head_dim":128,"linear_value_head_dim":128,
      "linear_conv_kernel_dim":4,"num_experts":512,"num_experts_per_tok":10,
      "moe_intermediate_size":512,"shared_expert_intermediate_size":512,"norm_topk_prob":true,
      "decoder_sparse_step":1,"mlp_only_layers":[],"tie_word_embeddings":false})"},
    {"tiny", R"({"architectures":["Qwen3NextForCausalLM"],"model_type":"qwen3_next",
      "dtype":"bfloat16","hidden_act":"silu","attention_bias":false,"vocab_size":2048,
      "hidden_size":128,"num_hidden_layers":4,"intermediate_size":5632,"rms_norm_eps":1e-06,
      "num_attention_heads":4,"num_key_value_heads":2,"head_dim":64,"partial_rotary_factor":0.25,
      "rope_theta":10000000,"max_position_embeddings":4096,"full_attention_interval":4,
      "linear_num_key_heads":2,"linear_num_value_heads":4,"linear_key_head_dim":32,
      "linear_value_head_dim":32,"linear_conv_kernel_dim":4,"num_experts":16,
      "num_experts_per_tok":4,"moe_intermediate_size":64,"shared_expert_intermediate_size":64,
      "norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],
      "tie_word_embeddings":false})"}};

// The text that `where` stands for; sets directory.
absl::StatusOr<std::string> ReadText(const std::string& where, std::string* directory) {
  for (const auto& [name, text] : kGeometries) {
    if (where == name) return std::string(text);
  }
  std::error_code error;
  const std::filesystem::path path(where);
  if (std::filesystem::is_directory(path, error)) {
    *directory = where;
    return ReadTextFile(where + "/config.json", kMaxConfigBytes);
  }
  if (!std::filesystem::exists(path, error)) {
    return StatusF(absl::StatusCode::kNotFound,
                   "'{}': neither a config.json, nor a directory with one, nor a geometry ({})",
                   Printable(where), SynthGeometryNames());
  }
  *directory = path.has_parent_path() ? path.parent_path().string() : ".";
  return ReadTextFile(where, kMaxConfigBytes);
}

absl::Status SetValue(const std::string& assignment, json* document) {
  const size_t equals = assignment.find('=');
  if (equals == 0 || equals == std::string::npos) {
    return InvalidArgumentF("'{}': expected KEY=VALUE", Printable(assignment));
  }
  const std::string key = assignment.substr(0, equals);
  json value = json::parse(assignment.substr(equals + 1), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    return InvalidArgumentF("'{}': expected a value in JSON", Printable(assignment));
  }
  (*document)[key] = std::move(value);
  return absl::OkStatus();
}

bool Sets(const std::vector<std::string>& values, std::string_view key) {
  for (const std::string& value : values) {
    if (std::string_view(value).substr(0, value.find('=')) == key) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<SynthFormat> ParseSynthFormat(std::string_view name) {
  for (const auto& [known, format] : kFormats) {
    if (name == known) return format;
  }
  return InvalidArgumentF("'{}': expected bf16, nf4, nf4-single, int8 or fp8", Printable(name));
}

std::string_view SynthFormatName(SynthFormat format) {
  return kFormats[static_cast<size_t>(format)].first;
}

std::string SynthGeometryNames() {
  std::string names;
  for (const auto& [name, text] : kGeometries) {
    if (!names.empty()) names += ", ";
    names += name;
  }
  return names;
}

absl::StatusOr<SynthConfig> MakeSynthConfig(const std::string& where,
                                            const std::vector<std::string>& values) {
  SynthConfig out;
  ASSIGN_OR_RETURN(const std::string text, ReadText(where, &out.directory));
  ASSIGN_OR_RETURN(json document, ParseJsonObject(text, where));
  for (const char* key : {"quantization_config", "compression_config"}) document.erase(key);
  if (Sets(values, "num_hidden_layers") && !Sets(values, "layer_types")) {
    document.erase("layer_types");
  }
  for (const std::string& value : values) RETURN_IF_ERROR(SetValue(value, &document));
  out.json = document.dump(2, ' ', false, json::error_handler_t::replace);
  ASSIGN_OR_RETURN(out.model, ParseModelConfig(out.json, where));
  return out;
}

std::string SynthConfigText(const SynthConfig& config, SynthFormat format,
                            const std::vector<std::string>& plain_modules) {
  json document = json::parse(config.json);
  switch (format) {
    case SynthFormat::kBF16:
      break;
    case SynthFormat::kNF4:
    case SynthFormat::kNF4Single:
      document["quantization_config"] = {{"quant_method", "bitsandbytes"},
                                         {"_load_in_4bit", true},
                                         {"_load_in_8bit", false},
                                         {"load_in_4bit", true},
                                         {"load_in_8bit", false},
                                         {"bnb_4bit_compute_dtype", "bfloat16"},
                                         {"bnb_4bit_quant_storage", "uint8"},
                                         {"bnb_4bit_quant_type", "nf4"},
                                         {"bnb_4bit_use_double_quant", format == SynthFormat::kNF4},
                                         {"llm_int8_enable_fp32_cpu_offload", false},
                                         {"llm_int8_has_fp16_weight", false},
                                         {"llm_int8_skip_modules", nullptr},
                                         {"llm_int8_threshold", 6.0}};
      break;
    case SynthFormat::kInt8:
      document["quantization_config"] = {{"quant_method", "bitsandbytes"},
                                         {"load_in_4bit", false},
                                         {"load_in_8bit", true},
                                         {"llm_int8_skip_modules", nullptr},
                                         {"llm_int8_threshold", 6.0}};
      break;
    case SynthFormat::kFP8:
      document["quantization_config"] = {{"quant_method", "fp8"},
                                         {"fmt", "e4m3"},
                                         {"activation_scheme", "dynamic"},
                                         {"weight_block_size", {128, 128}},
                                         {"modules_to_not_convert", plain_modules}};
      break;
  }
  return document.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace banyan
