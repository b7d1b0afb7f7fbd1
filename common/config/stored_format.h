// Names of the ways in which checkpoints store a matrix.
#pragma once

#include <cstdint>
#include <string_view>

namespace banyan {

enum class StoredFormat : uint8_t {
  kBF16,
  kF16,
  kF32,
  kNF4,   // bitsandbytes 4-bit: U8 codes and .absmax, .quant_map, .quant_state, .nested_*
  kFP4,   // the same with another table
  kInt8,  // bitsandbytes LLM.int8: I8, SCB per row, weight_format
  kFP8,   // F8_E4M3 and .weight_scale_inv or .weight_scale
};
inline constexpr int kNumStoredFormats = 7;

// bf16, f16, f32, nf4, fp4, int8, fp8.
constexpr std::string_view StoredFormatName(StoredFormat format) {
  constexpr std::string_view kNames[] = {"bf16", "f16", "f32", "nf4", "fp4", "int8", "fp8"};
  return kNames[static_cast<int>(format)];
}
constexpr bool IsPlain(StoredFormat format) { return format <= StoredFormat::kF32; }

// For messages about what is not.
inline constexpr char kSupportedWeights[] =
    "bf16, f16 and f32 weights, bitsandbytes NF4, FP4 and LLM.int8, FP8 e4m3 with scales per block "
    "of 128 x 128 or per row";

}  // namespace banyan
