// How the trunk's matrices are kept in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/tensor/dtype.h"

namespace banyan {

// As stored (quantised ones as bf16 or f32), or those that cost the most to read (projections of
// mixers and FFNs, the head) as 8-bit codes. Router, gates of the DeltaNet and embedding stay.
enum class TrunkFormat : uint8_t { kBf16, kInt8 };

// What --trunk_format takes: bf16, int8.
constexpr std::string_view TrunkFormatName(TrunkFormat format) {
  return format == TrunkFormat::kInt8 ? "int8" : "bf16";
}

// "auto" (nullopt), "bf16", "int8"; kInvalidArgument names the flag.
absl::StatusOr<std::optional<TrunkFormat>> ParseTrunkFormat(std::string_view name);

// Of keys and values: "auto" (nullopt), "f32", or "bf16" on a GPU; kInvalidArgument.
absl::StatusOr<std::optional<DType>> ParseKvFormat(std::string_view name, bool on_gpu);

// Of the rows that the trunk sends to the experts: "auto" (bf16 on a GPU, else f32), "f32", "bf16";
// kInvalidArgument names the flag. docs/adr/f32-on-the-wire.md.
absl::StatusOr<DType> ParseExpertActivations(std::string_view name, bool on_gpu);

// What these two flags take.
constexpr std::string_view FloatFormatName(DType dtype) {
  return dtype == DType::kBF16 ? "bf16" : "f32";
}

inline constexpr char kTrunkFormatHelp[] =
    "How the trunk's matrices are kept: bf16 (as stored), int8 (8-bit codes, half the memory and "
    "reads), or auto (int8 only where bf16 does not fit the GPU)";
inline constexpr char kKvFormatHelp[] =
    "How keys and values are kept: f32, bf16 (on a GPU), or auto (bf16 on a GPU)";
inline constexpr char kExpertActivationsHelp[] =
    "How rows go to the experts, which multiply them at that precision: f32, bf16 (half the bytes, "
    "faster kernels), or auto (bf16 on a GPU, f32 on the CPU)";

// Columns of an 8-bit matrix that share an f32 scale; the last of a row may be fewer.
inline constexpr int32_t kInt8GroupColumns = 64;

constexpr int32_t Int8Groups(int32_t cols) {
  return (cols + kInt8GroupColumns - 1) / kInt8GroupColumns;
}

// Matrices that no format changes: the embedding, and small ones whose decisions are sharp.
constexpr bool IsKeptAsStored(std::string_view name) {
  return name == "model.embed_tokens.weight" || name.ends_with(".mlp.gate.weight") ||
         name.ends_with(".shared_expert_gate.weight") || name.ends_with(".in_proj_ba.weight");
}

}  // namespace banyan
