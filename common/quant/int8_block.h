// int8: groups of 32 weights along k with one f16 scale, w = scale * q, q in [-127, 127].
//
// A chunk of a panel (common/quant/pool_format.h), 1088 bytes:
//      0  u8 [16 k-quads][16 outputs][4 k]: q + 128, the unsigned operand of VPDPBUSD, and eight
//         rows of 64 bytes a group, the B tile of TDPBSUD
//   1024  f16 [2 groups][16 outputs]: scales
#pragma once

#include <cstdint>

#include "common/quant/f16.h"

namespace banyan {

inline constexpr int64_t kInt8GroupSize = 32;
inline constexpr int64_t kInt8ChunkBytes = 1088;
inline constexpr int64_t kInt8ChunkScales = 1024;  // offset
inline constexpr int32_t kInt8Offset = 128;        // stored minus q

struct Int8Group {
  F16 scale;
  uint8_t values[kInt8GroupSize];  // q + 128
};

// `w`: 32 finite weights. scale = f16(amax / 127), one step up where an |q| would exceed 127,
// at most the largest finite f16; q = w / scale rounded to nearest even, cut to +-127. A group of
// zeros, or of weights that f16 scales cannot tell from zero, has scale 0 and q 0.
Int8Group EncodeInt8Group(const float* w);

// Exact.
inline float DecodeInt8(F16 scale, uint8_t value) {
  return ToFloat(scale) * static_cast<float>(value - kInt8Offset);
}

}  // namespace banyan
