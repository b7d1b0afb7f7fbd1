#include "common/quant/nf4.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/check.h"

namespace banyan {
namespace {

// f32 midpoints of neighbours, which equal the constants of bitsandbytes' CUDA code.
constexpr float Threshold(int i) { return (kNF4Table[i] + kNF4Table[i + 1]) * 0.5f; }

// Writes one output's block into its chunk.
void PutBlock(const NF4Block& block, int64_t output, std::byte* chunk) {
  std::byte* const at = chunk + output / 2 * 64 + output % 2;
  for (int i = 0; i < 32; ++i) {
    at[2 * i] = static_cast<std::byte>(block.codes[i] | block.codes[32 + i] << 4);
  }
  std::memcpy(chunk + kNF4ChunkScales + output * 4, &block.absmax, sizeof(float));
}

NF4Block ZeroBlock() {
  NF4Block out;
  out.absmax = 0;
  std::fill(std::begin(out.codes), std::end(out.codes), kNF4Zero);
  return out;
}

}  // namespace

NF4Block EncodeNF4Block(const float* w) {
  float absmax = 0;
  for (int64_t i = 0; i < kNF4BlockSize; ++i) absmax = std::max(absmax, std::abs(w[i]));
  const float inverse = 1.0f / absmax;
  if (!std::isfinite(inverse)) return ZeroBlock();
  float x[kNF4BlockSize];
  int32_t codes[kNF4BlockSize] = {};
  for (int64_t i = 0; i < kNF4BlockSize; ++i) x[i] = w[i] * inverse;
  // Threshold by threshold, so that the compiler makes vectors of it.
  for (int t = 0; t < 15; ++t) {
    const float threshold = Threshold(t);
    for (int64_t i = 0; i < kNF4BlockSize; ++i) codes[i] += x[i] > threshold ? 1 : 0;
  }
  NF4Block out;
  out.absmax = absmax;
  for (int64_t i = 0; i < kNF4BlockSize; ++i) out.codes[i] = static_cast<uint8_t>(codes[i]);
  return out;
}

void PackNF4Panels(const FloatMatrix& matrix, int64_t first_panel, int64_t end_panel,
                   std::byte* out) {
  const int64_t chunks = NumChunks(matrix.k);
  for (int64_t panel = first_panel; panel < end_panel; ++panel) {
    for (int64_t c = 0; c < chunks; ++c) {
      std::byte* const chunk = out + (panel * chunks + c) * kNF4ChunkBytes;
      const int64_t n = std::min(kChunkInputs, matrix.k - c * kChunkInputs);
      for (int64_t output = 0; output < kPanelOutputs; ++output) {
        const int64_t o = panel * kPanelOutputs + output;
        if (o >= matrix.num_outputs) {
          PutBlock(ZeroBlock(), output, chunk);
          continue;
        }
        const float* const row = matrix.data + o * matrix.row_stride + c * kChunkInputs;
        if (n == kChunkInputs) {
          PutBlock(EncodeNF4Block(row), output, chunk);
        } else {
          float part[kChunkInputs] = {};
          std::memcpy(part, row, static_cast<size_t>(n) * sizeof(float));
          PutBlock(EncodeNF4Block(part), output, chunk);
        }
      }
    }
  }
}

void PackNF4Codes(const NF4Codes& matrix, std::byte* out) {
  CHECK(matrix.num_outputs >= 1 && matrix.k >= 1 && matrix.k % kChunkInputs == 0);
  CHECK(matrix.row_codes % kNF4BlockSize == 0 && matrix.code_offset % kNF4BlockSize == 0);
  CHECK(matrix.code_offset >= 0 && matrix.code_offset + matrix.k <= matrix.row_codes);
  const int64_t chunks = NumChunks(matrix.k);
  for (int64_t panel = 0; panel < NumPanels(matrix.num_outputs); ++panel) {
    for (int64_t c = 0; c < chunks; ++c) {
      std::byte* const chunk = out + (panel * chunks + c) * kNF4ChunkBytes;
      for (int64_t output = 0; output < kPanelOutputs; ++output) {
        const int64_t o = panel * kPanelOutputs + output;
        NF4Block block = ZeroBlock();
        if (o < matrix.num_outputs) {
          const int64_t first = o * matrix.row_codes + matrix.code_offset + c * kChunkInputs;
          const std::byte* const pairs = matrix.codes + first / 2;
          for (int64_t i = 0; i < kChunkInputs / 2; ++i) {
            block.codes[2 * i] = static_cast<uint8_t>(pairs[i] >> 4);
            block.codes[2 * i + 1] = static_cast<uint8_t>(pairs[i] & std::byte{0x0f});
          }
          block.absmax = matrix.absmax[first / kNF4BlockSize];
        }
        PutBlock(block, output, chunk);
      }
    }
  }
}

void UnpackNF4(const std::byte* packed, int64_t num_outputs, int64_t k, float* out) {
  const int64_t chunks = NumChunks(k);
  for (int64_t o = 0; o < num_outputs; ++o) {
    const std::byte* const panel = packed + o / kPanelOutputs * chunks * kNF4ChunkBytes;
    const int64_t output = o % kPanelOutputs;
    for (int64_t i = 0; i < k; ++i) {
      const std::byte* const chunk = panel + i / kChunkInputs * kNF4ChunkBytes;
      const int64_t j = i % kChunkInputs;
      const auto pair = static_cast<uint8_t>(chunk[output / 2 * 64 + j % 32 * 2 + output % 2]);
      float absmax;
      std::memcpy(&absmax, chunk + kNF4ChunkScales + output * 4, sizeof(absmax));
      *out++ = ToFloat(DecodeNF4(absmax, j < 32 ? pair & 0x0f : pair >> 4));
    }
  }
}

}  // namespace banyan
