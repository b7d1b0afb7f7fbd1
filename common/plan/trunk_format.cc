#include "common/plan/trunk_format.h"

#include "common/base/strings.h"

namespace banyan {

absl::StatusOr<std::optional<TrunkFormat>> ParseTrunkFormat(std::string_view name) {
  if (name == "auto") return std::optional<TrunkFormat>();
  for (const TrunkFormat format : {TrunkFormat::kBf16, TrunkFormat::kInt8}) {
    if (name == TrunkFormatName(format)) return std::optional(format);
  }
  return InvalidArgumentF("--trunk_format '{}': expected auto, bf16 or int8", Printable(name));
}

absl::StatusOr<std::optional<DType>> ParseKvFormat(std::string_view name, bool on_gpu) {
  if (name == "auto") return std::optional<DType>();
  if (name == "f32") return std::optional(DType::kF32);
  if (name != "bf16") {
    return InvalidArgumentF("--kv_format '{}': expected auto, f32 or bf16", Printable(name));
  }
  if (!on_gpu) {
    return InvalidArgumentF("--kv_format bf16: the CPU keeps keys and values in f32");
  }
  return std::optional(DType::kBF16);
}

absl::StatusOr<DType> ParseExpertActivations(std::string_view name, bool on_gpu) {
  if (name == "auto") return on_gpu ? DType::kBF16 : DType::kF32;
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  return InvalidArgumentF("--expert_activations '{}': expected auto, f32 or bf16", Printable(name));
}

}  // namespace banyan
