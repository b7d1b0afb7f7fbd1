#include "common/quant/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "common/quant/nf4.h"

namespace banyan {
namespace {

void PackBF16(const FloatMatrix& matrix, std::byte* out) {
  for (int64_t o = 0; o < matrix.num_outputs; ++o) {
    const float* row = matrix.data + o * matrix.row_stride;
    for (int64_t i = 0; i < matrix.k; ++i, out += sizeof(BF16)) {
      const BF16 value = ToBF16(row[i]);
      std::memcpy(out, &value, sizeof(value));
    }
  }
}

void UnpackBF16(const std::byte* packed, int64_t num_weights, float* out) {
  for (int64_t i = 0; i < num_weights; ++i) {
    BF16 value;
    std::memcpy(&value, packed + i * 2, sizeof(value));
    out[i] = ToFloat(value);
  }
}

// Where a group of one output stands in its chunk.
struct GroupPlace {
  std::byte* chunk;
  int64_t group;   // in the chunk
  int64_t output;  // in the panel
};

void PutScale(F16 scale, int64_t scales_offset, const GroupPlace& at) {
  std::memcpy(at.chunk + scales_offset + (at.group * kPanelOutputs + at.output) * 2, &scale, 2);
}

F16 GetScale(const std::byte* chunk, int64_t scales_offset, int64_t group, int64_t output) {
  F16 scale;
  std::memcpy(&scale, chunk + scales_offset + (group * kPanelOutputs + output) * 2, 2);
  return scale;
}

struct Int8Format {
  static constexpr int64_t kGroup = kInt8GroupSize;
  static constexpr int64_t kBytes = kInt8ChunkBytes;
  static void Encode(const float* w, const GroupPlace& at) {
    const Int8Group group = EncodeInt8Group(w);
    std::byte* quads = at.chunk + at.group * kGroup * kPanelOutputs + at.output * 4;
    for (int64_t i = 0; i < kGroup; i += 4, quads += 4 * kPanelOutputs) {
      std::memcpy(quads, group.values + i, 4);
    }
    PutScale(group.scale, kInt8ChunkScales, at);
  }
  static float Decode(const std::byte* chunk, int64_t output, int64_t i) {
    const auto value = static_cast<uint8_t>(chunk[i / 4 * 4 * kPanelOutputs + output * 4 + i % 4]);
    return DecodeInt8(GetScale(chunk, kInt8ChunkScales, i / kGroup, output), value);
  }
};

struct Int4Format {
  static constexpr int64_t kGroup = kInt4GroupSize;
  static constexpr int64_t kBytes = kInt4ChunkBytes;
  static void Encode(const float* w, const GroupPlace& at) {
    const Int4Group group = EncodeInt4Group(w);
    std::byte* pairs = at.chunk + at.group * kGroup / 2 * kPanelOutputs + at.output * 4;
    for (int64_t i = 0; i < kGroup; i += 8, pairs += 4 * kPanelOutputs) {
      for (int64_t j = 0; j < 4; ++j) {
        pairs[j] = static_cast<std::byte>(group.values[i + j] | group.values[i + 4 + j] << 4);
      }
    }
    PutScale(group.scale, kInt4ChunkScales, at);
  }
  static float Decode(const std::byte* chunk, int64_t output, int64_t i) {
    const auto pair = static_cast<uint8_t>(chunk[i / 8 * 4 * kPanelOutputs + output * 4 + i % 4]);
    const auto value = static_cast<uint8_t>(i % 8 < 4 ? pair & 0x0f : pair >> 4);
    return DecodeInt4(GetScale(chunk, kInt4ChunkScales, i / kGroup, output), value);
  }
};

template <class Format>
void PackIntegerPanels(const FloatMatrix& matrix, int64_t first_panel, int64_t end_panel,
                       std::byte* out) {
  constexpr int64_t kGroup = Format::kGroup;
  const int64_t chunks = NumChunks(matrix.k);
  for (int64_t panel = first_panel; panel < end_panel; ++panel) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      std::byte* const at = out + (panel * chunks + chunk) * Format::kBytes;
      for (int64_t output = 0; output < kPanelOutputs; ++output) {
        const int64_t o = panel * kPanelOutputs + output;
        for (int64_t group = 0; group < kChunkInputs / kGroup; ++group) {
          const int64_t first = chunk * kChunkInputs + group * kGroup;
          const int64_t n =
              o < matrix.num_outputs ? std::clamp<int64_t>(matrix.k - first, 0, kGroup) : 0;
          const float* const row = matrix.data + o * matrix.row_stride + first;
          const GroupPlace place = {at, group, output};
          if (n == kGroup) {
            Format::Encode(row, place);
          } else {
            float part[kGroup] = {};
            if (n > 0) std::memcpy(part, row, static_cast<size_t>(n) * sizeof(float));
            Format::Encode(part, place);
          }
        }
      }
    }
  }
}

template <class Format>
void UnpackIntegers(const std::byte* packed, int64_t num_outputs, int64_t k, float* out) {
  const int64_t chunks = NumChunks(k);
  for (int64_t o = 0; o < num_outputs; ++o) {
    const std::byte* const panel = packed + o / kPanelOutputs * chunks * Format::kBytes;
    for (int64_t i = 0; i < k; ++i) {
      const std::byte* const chunk = panel + i / kChunkInputs * Format::kBytes;
      *out++ = Format::Decode(chunk, o % kPanelOutputs, i % kChunkInputs);
    }
  }
}

}  // namespace

void PackMatrix(PoolFormat format, const FloatMatrix& matrix, std::byte* out) {
  CHECK(matrix.num_outputs >= 1 && matrix.k >= 1);
  if (format == PoolFormat::kBF16) {
    PackBF16(matrix, out);
  } else {
    PackPanels(format, matrix, 0, NumPanels(matrix.num_outputs), out);
  }
}

void PackPanels(PoolFormat format, const FloatMatrix& matrix, int64_t first_panel,
                int64_t end_panel, std::byte* out) {
  CHECK(first_panel >= 0 && end_panel <= NumPanels(matrix.num_outputs));
  switch (format) {
    case PoolFormat::kInt8:
      return PackIntegerPanels<Int8Format>(matrix, first_panel, end_panel, out);
    case PoolFormat::kInt4:
      return PackIntegerPanels<Int4Format>(matrix, first_panel, end_panel, out);
    case PoolFormat::kNF4:
      return PackNF4Panels(matrix, first_panel, end_panel, out);
    case PoolFormat::kBF16:
      break;
  }
  CHECK(false);
}

void UnpackMatrix(PoolFormat format, const std::byte* packed, int64_t num_outputs, int64_t k,
                  float* out) {
  CHECK(num_outputs >= 1 && k >= 1);
  switch (format) {
    case PoolFormat::kBF16:
      return UnpackBF16(packed, num_outputs * k, out);
    case PoolFormat::kInt8:
      return UnpackIntegers<Int8Format>(packed, num_outputs, k, out);
    case PoolFormat::kInt4:
      return UnpackIntegers<Int4Format>(packed, num_outputs, k, out);
    case PoolFormat::kNF4:
      return UnpackNF4(packed, num_outputs, k, out);
  }
  CHECK(false);
}

}  // namespace banyan
