#include <cstring>

#include "common/quant/nf4.h"
#include "services/expert/kernels/nf4_panel.h"

namespace banyan::expert {

void DecodeNF4PanelScalar(const std::byte* panel, int64_t k, int64_t stride, std::byte* out) {
  for (int64_t i = 0; i < NumChunks(k); ++i, panel += kNF4ChunkBytes) {
    for (int64_t o = 0; o < kPanelOutputs; ++o) {
      float absmax;
      std::memcpy(&absmax, panel + kNF4ChunkScales + o * 4, sizeof(absmax));
      BF16 weights[16];
      for (uint8_t code = 0; code < 16; ++code) weights[code] = DecodeNF4(absmax, code);
      const std::byte* const codes = panel + o / 2 * 64 + o % 2;
      BF16 row[kChunkInputs];
      for (int64_t j = 0; j < kChunkInputs / 2; ++j) {
        const auto pair = static_cast<uint8_t>(codes[j * 2]);
        row[j] = weights[pair & 0x0f];
        row[j + kChunkInputs / 2] = weights[pair >> 4];
      }
      std::memcpy(out + o * stride + i * kChunkInputs * 2, row, sizeof(row));
    }
  }
}

}  // namespace banyan::expert
