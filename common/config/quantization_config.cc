#include "common/config/quantization_config.h"

#include <nlohmann/json.hpp>

#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

absl::Status Unsupported(const JsonObject& object, std::string_view key, std::string_view found) {
  return StatusF(absl::StatusCode::kUnimplemented,
                 "{}.{} is {}, which is not supported (supported: {})", object.place(), key, found,
                 kSupportedWeights);
}

absl::StatusOr<QuantizationConfig> ReadBitsAndBytes(const JsonObject& object) {
  QuantizationConfig out;
  ASSIGN_OR_RETURN(const bool in_8bit, object.Bool("load_in_8bit", false));
  ASSIGN_OR_RETURN(const bool in_4bit, object.Bool("load_in_4bit", !in_8bit));
  if (in_8bit == in_4bit) {
    return object.Error("load_in_8bit", fmt::format("is {} and load_in_4bit is {}, expected one of "
                                                    "them to be true",
                                                    in_8bit, in_4bit));
  }
  if (in_8bit) {
    out.format = StoredFormat::kInt8;
    out.text = "bitsandbytes, load_in_8bit";
    return out;
  }
  ASSIGN_OR_RETURN(std::string type, object.String("bnb_4bit_quant_type"));
  if (type.empty()) type = "fp4";  // bitsandbytes' own default
  if (type != "nf4" && type != "fp4") {
    return Unsupported(object, "bnb_4bit_quant_type", fmt::format("\"{}\"", Printable(type)));
  }
  ASSIGN_OR_RETURN(out.double_quant, object.Bool("bnb_4bit_use_double_quant", false));
  out.format = type == "nf4" ? StoredFormat::kNF4 : StoredFormat::kFP4;
  out.text = fmt::format("bitsandbytes, {}{}", type, *out.double_quant ? " double-quantised" : "");
  return out;
}

absl::StatusOr<QuantizationConfig> ReadFP8(const JsonObject& object) {
  ASSIGN_OR_RETURN(const std::string fmt_name, object.String("fmt"));
  if (!fmt_name.empty() && fmt_name != "e4m3") {
    return Unsupported(object, "fmt", fmt::format("\"{}\"", Printable(fmt_name)));
  }
  const nlohmann::json* const block = object.Find("weight_block_size");
  if (block != nullptr && *block != nlohmann::json({128, 128})) {
    return Unsupported(object, "weight_block_size", Describe(*block));
  }
  QuantizationConfig out;
  out.format = StoredFormat::kFP8;
  out.text = "fp8";
  return out;
}

absl::StatusOr<QuantizationConfig> Read(const JsonObject& object) {
  ASSIGN_OR_RETURN(const std::string method, object.String("quant_method"));
  if (method.empty()) return object.Error("quant_method", "is missing");
  if (method == "bitsandbytes") return ReadBitsAndBytes(object);
  if (method == "fp8" || method == "fbgemm_fp8") return ReadFP8(object);
  if (method == "compressed-tensors") {
    ASSIGN_OR_RETURN(const std::string format, object.String("format"));
    if (format == "float-quantized") return ReadFP8(object);
    return Unsupported(object, "quant_method",
                       fmt::format("\"{}\" with format \"{}\"", method, Printable(format)));
  }
  return Unsupported(object, "quant_method", fmt::format("\"{}\"", Printable(method)));
}

}  // namespace

absl::StatusOr<std::optional<QuantizationConfig>> ReadQuantizationConfig(const JsonObject& root) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const nlohmann::json* const value = root.Find(key);
    if (value == nullptr) continue;
    if (!value->is_object()) {
      return root.Error(key, fmt::format("is {}, expected an object", Describe(*value)));
    }
    ASSIGN_OR_RETURN(QuantizationConfig config,
                     Read(JsonObject(*value, fmt::format("{}: {}", root.place(), key))));
    config.text = fmt::format("{}: {}", key, config.text);
    return std::optional(std::move(config));
  }
  if (const nlohmann::json* const mlx = root.Find("quantization")) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: quantization is {} (MLX), which is not supported (supported: {})",
                   root.place(), Describe(*mlx), kSupportedWeights);
  }
  return std::optional<QuantizationConfig>();
}

}  // namespace banyan
