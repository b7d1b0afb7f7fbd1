// int4: groups of 32 weights along k with one f16 scale of either sign, w = scale * (q - 8), q in
// [0, 15].
//
// A chunk of a panel (common/quant/pool_format.h), 576 bytes:
//     0  u8 [8 pairs of k-quads][16 outputs][4 k]: q of the even k-quad in the low half, of the odd
//        one in the high half; so 64 bytes give, by `& 0x0f` and by `>> 4`, two consecutive k-quads
//        [16 outputs][4 k] of int8's order
//   512  f16 [2 groups][16 outputs]: scales
#pragma once

#include <cstdint>

#include "common/quant/f16.h"

namespace banyan {

inline constexpr int64_t kInt4GroupSize = 32;
inline constexpr int64_t kInt4ChunkBytes = 576;
inline constexpr int64_t kInt4ChunkScales = 512;  // offset
inline constexpr int32_t kInt4Offset = 8;         // stored minus q of w = scale * q

struct Int4Group {
  F16 scale;
  uint8_t values[kInt4GroupSize];  // q, one a byte
};

// `w`: 32 weights, magnitudes up to 2^18. With m the weight of largest magnitude (the positive one
// of equals), the scale is the one of f16(m / -8), f16(m / -8.5), f16(m / -7.5) whose squared error
// is least, the first of equals; q - 8 = w / scale rounded to nearest even, cut to [-8, 7]. Error
// of Gaussian weights: 8.3 % RMS; 8.6 % with the first scale alone, 8.1 % with five and a
// least-squares step. A group of zeros, or of weights too small for f16 scales, has scale 0, q 8.
Int4Group EncodeInt4Group(const float* w);

// The same in the baseline's instructions, for tests: EncodeInt4Group uses AVX2 where it is.
Int4Group EncodeInt4GroupPortably(const float* w);

// Exact.
inline float DecodeInt4(F16 scale, uint8_t value) {
  return ToFloat(scale) * static_cast<float>(value - kInt4Offset);
}

}  // namespace banyan
