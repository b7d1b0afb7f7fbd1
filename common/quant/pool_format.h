// Formats of the expert pool and the geometry that packed matrices of them have.
//
// A matrix maps k inputs to num_outputs outputs. bf16 is row-major, [num_outputs][k], as a
// checkpoint has it. The quantised formats are in kernel order: outputs in panels of kPanelOutputs,
// a panel in chunks of kChunkInputs consecutive inputs, chunk after chunk, panel after panel. What
// lies beyond num_outputs or k in the last panel or chunk decodes to zero. Bytes of a chunk:
// docs/formats/expert_pack.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace banyan {

// The values stand in pack files.
enum class PoolFormat : uint8_t {
  kBF16 = 1,
  kInt8 = 2,  // groups of 32 along k: f16 scale, w = scale * q, q in [-127, 127]
  kNF4 = 3,   // blocks of 64 along k: f32 scale, w = bf16(scale * table[code])
  kInt4 = 4,  // groups of 32 along k: f16 scale, w = scale * (q - 8), q in [0, 15]
};

inline constexpr int64_t kPanelOutputs = 16;
inline constexpr int64_t kChunkInputs = 64;

// What --pool_format takes: bf16, int8, nf4, int4.
std::string_view PoolFormatName(PoolFormat format);
std::optional<PoolFormat> ParsePoolFormat(std::string_view name);

// Inputs that share a scale: 1 for bf16. Slices of k are cut at multiples of it.
int64_t PoolFormatGroup(PoolFormat format);

// Of one chunk of a panel, a multiple of 64: 1088 int8, 576 nf4 and int4. 0 for bf16.
int64_t ChunkBytes(PoolFormat format);

// Of a packed matrix. num_outputs, k >= 1.
int64_t PackedMatrixBytes(PoolFormat format, int64_t num_outputs, int64_t k);

constexpr int64_t NumPanels(int64_t num_outputs) {
  return (num_outputs + kPanelOutputs - 1) / kPanelOutputs;
}
constexpr int64_t NumChunks(int64_t k) { return (k + kChunkInputs - 1) / kChunkInputs; }
// With what lies beyond the matrix in the last panel and chunk.
constexpr int64_t PaddedInputs(int64_t k) { return NumChunks(k) * kChunkInputs; }
constexpr int64_t PaddedElements(int64_t num_outputs, int64_t k) {
  return NumPanels(num_outputs) * kPanelOutputs * PaddedInputs(k);
}

}  // namespace banyan
