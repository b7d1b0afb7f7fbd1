// Where gate_proj, up_proj and down_proj lie in an expert of a pack. Bytes:
// docs/formats/expert_pack.md.
#pragma once

#include <cstdint>

#include "common/quant/pool_format.h"

namespace banyan {

inline constexpr int64_t kPackedMatrixAlignment = 64;

// In bytes from the start of the expert; each a multiple of kPackedMatrixAlignment.
struct PackedExpertLayout {
  int64_t gate_offset = 0;
  int64_t up_offset = 0;
  int64_t down_offset = 0;
  int64_t bytes = 0;  // of the expert

  int64_t gate_bytes() const { return up_offset - gate_offset; }  // up_proj is as large
  int64_t down_bytes() const { return bytes - down_offset; }
};

// gate, up [width, hidden_size], down [hidden_size, width]; width: moe_intermediate_size, or what a
// shard has of it.
inline PackedExpertLayout PackedExpertLayoutOf(PoolFormat format, int64_t hidden_size,
                                               int64_t width) {
  const auto aligned = [](int64_t bytes) {
    return (bytes + kPackedMatrixAlignment - 1) / kPackedMatrixAlignment * kPackedMatrixAlignment;
  };
  const int64_t gate_bytes = aligned(PackedMatrixBytes(format, width, hidden_size));
  const int64_t down_bytes = aligned(PackedMatrixBytes(format, hidden_size, width));
  return {.gate_offset = 0,
          .up_offset = gate_bytes,
          .down_offset = 2 * gate_bytes,
          .bytes = 2 * gate_bytes + down_bytes};
}

}  // namespace banyan
