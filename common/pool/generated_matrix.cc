#include "common/pool/generated_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/io/generated_tensor.h"
#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "common/quant/nf4.h"

namespace banyan {
namespace {

// Root mean square of the codes: of max(u, 1) - 128 over u 0 to 255, of -8 to 7, of the table.
constexpr float kInt8Deviation = 73.8952f;
constexpr float kInt4Deviation = 4.63681f;
constexpr float kNF4Deviation = 0.517210f;

struct Int8 {
  static constexpr int64_t kGroup = kInt8GroupSize;
  static constexpr int64_t kBytes = kInt8ChunkBytes;
  static constexpr int64_t kUnitBytes = kGroup * kPanelOutputs;
  static constexpr int64_t kScales = kInt8ChunkScales;
  static constexpr int64_t kLines = kUnitBytes / kGeneratedLineBytes;
  using Scale = F16;

  static Scale ScaleOf(float deviation) { return ToF16(deviation / kInt8Deviation); }
  static void Codes(uint64_t seed, uint64_t unit, std::byte* out) {
    GenerateLines(seed, unit * kLines, kLines, out);
    auto* const codes = reinterpret_cast<uint8_t*>(out);
    for (int64_t i = 0; i < kUnitBytes; ++i) codes[i] = std::max<uint8_t>(codes[i], 1);
  }
  static void Signs(uint64_t, uint64_t, Scale*) {}
  static void Clear(std::byte* chunk, int64_t output, int64_t i) {
    chunk[i / 4 * 4 * kPanelOutputs + output * 4 + i % 4] = std::byte{kInt8Offset};
  }
};

struct Int4 {
  static constexpr int64_t kGroup = kInt4GroupSize;
  static constexpr int64_t kBytes = kInt4ChunkBytes;
  static constexpr int64_t kUnitBytes = kGroup * kPanelOutputs / 2;
  static constexpr int64_t kScales = kInt4ChunkScales;
  static constexpr int64_t kLines = kUnitBytes / kGeneratedLineBytes + 1;
  using Scale = F16;

  static Scale ScaleOf(float deviation) { return ToF16(deviation / kInt4Deviation); }
  static void Codes(uint64_t seed, uint64_t unit, std::byte* out) {
    GenerateLines(seed, unit * kLines, kLines - 1, out);
  }
  static void Signs(uint64_t seed, uint64_t unit, Scale* scales) {
    uint32_t words[kPanelOutputs];
    GenerateLines(seed, unit * kLines + kLines - 1, 1, reinterpret_cast<std::byte*>(words));
    for (int64_t o = 0; o < kPanelOutputs; ++o) {
      scales[o].bits = static_cast<uint16_t>(scales[o].bits ^ (words[o] & 0x8000u));
    }
  }
  static void Clear(std::byte* chunk, int64_t output, int64_t i) {
    std::byte& pair = chunk[i / 8 * 4 * kPanelOutputs + output * 4 + i % 4];
    pair = i % 8 < 4 ? (pair & std::byte{0xf0}) | std::byte{kInt4Offset}
                     : (pair & std::byte{0x0f}) | std::byte{kInt4Offset << 4};
  }
};

struct NF4 {
  static constexpr int64_t kGroup = kNF4BlockSize;
  static constexpr int64_t kBytes = kNF4ChunkBytes;
  static constexpr int64_t kUnitBytes = kGroup * kPanelOutputs / 2;
  static constexpr int64_t kScales = kNF4ChunkScales;
  static constexpr int64_t kLines = kUnitBytes / kGeneratedLineBytes;
  using Scale = float;

  static Scale ScaleOf(float deviation) { return deviation / kNF4Deviation; }
  static void Codes(uint64_t seed, uint64_t unit, std::byte* out) {
    GenerateLines(seed, unit * kLines, kLines, out);
  }
  static void Signs(uint64_t, uint64_t, Scale*) {}
  static void Clear(std::byte* chunk, int64_t output, int64_t i) {
    std::byte& pair = chunk[output / 2 * 64 + i % 32 * 2 + output % 2];
    pair = i < 32 ? (pair & std::byte{0xf0}) | std::byte{kNF4Zero}
                  : (pair & std::byte{0x0f}) | std::byte{kNF4Zero << 4};
  }
};

template <class Format>
void Generate(uint64_t seed, float deviation, const MatrixSlice& slice, std::byte* out) {
  constexpr int64_t kChunkGroups = kChunkInputs / Format::kGroup;
  constexpr int64_t kScalesBytes = kPanelOutputs * int64_t{sizeof(typename Format::Scale)};
  static_assert(kChunkGroups * (Format::kUnitBytes + kScalesBytes) == Format::kBytes);
  CHECK(slice.first_output % kPanelOutputs == 0 && slice.first_input % Format::kGroup == 0);
  CHECK(slice.first_input + slice.num_inputs <= slice.inputs);
  const typename Format::Scale scale = Format::ScaleOf(deviation);
  const int64_t units = (slice.inputs + Format::kGroup - 1) / Format::kGroup;
  const int64_t num_groups = NumChunks(slice.num_inputs) * kChunkGroups;
  for (int64_t panel = 0; panel < NumPanels(slice.num_outputs); ++panel) {
    const int64_t outputs = std::min(kPanelOutputs, slice.num_outputs - panel * kPanelOutputs);
    const int64_t row = (slice.first_output / kPanelOutputs + panel) * units;
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t in_chunk = g % kChunkGroups;
      std::byte* const chunk =
          out + (panel * NumChunks(slice.num_inputs) + g / kChunkGroups) * Format::kBytes;
      const int64_t inputs =
          std::clamp<int64_t>(slice.num_inputs - g * Format::kGroup, 0, Format::kGroup);
      typename Format::Scale scales[kPanelOutputs] = {};
      if (inputs > 0) {
        const auto unit = static_cast<uint64_t>(row + slice.first_input / Format::kGroup + g);
        Format::Codes(seed, unit, chunk + in_chunk * Format::kUnitBytes);
        std::fill(scales, scales + kPanelOutputs, scale);
        Format::Signs(seed, unit, scales);
        std::fill(scales + outputs, scales + kPanelOutputs, typename Format::Scale{});
      }
      std::memcpy(chunk + Format::kScales + in_chunk * kScalesBytes, scales, sizeof(scales));
      // What lies beyond the matrix is zero.
      if (outputs == kPanelOutputs && inputs == Format::kGroup) continue;
      for (int64_t o = 0; o < kPanelOutputs; ++o) {
        for (int64_t i = o < outputs ? inputs : 0; i < Format::kGroup; ++i) {
          Format::Clear(chunk, o, in_chunk * Format::kGroup + i);
        }
      }
    }
  }
}

}  // namespace

void GeneratePackedMatrix(PoolFormat format, uint64_t seed, float deviation,
                          const MatrixSlice& slice, std::byte* out) {
  switch (format) {
    case PoolFormat::kInt8:
      return Generate<Int8>(seed, deviation, slice, out);
    case PoolFormat::kInt4:
      return Generate<Int4>(seed, deviation, slice, out);
    case PoolFormat::kNF4:
      return Generate<NF4>(seed, deviation, slice, out);
    case PoolFormat::kBF16:
      break;
  }
  CHECK(!"a quantised format");
}

}  // namespace banyan
