#include "common/quant/int8_block.h"

#include <algorithm>
#include <bit>

#include "common/quant/round_int.h"

namespace banyan {

Int8Group EncodeInt8Group(const float* w) {
  int32_t max_bits = 0;  // magnitudes of floats are ordered as their bits
  for (int i = 0; i < kInt8GroupSize; ++i) {
    const int32_t bits = std::bit_cast<int32_t>(w[i]) & 0x7fffffff;
    max_bits = bits > max_bits ? bits : max_bits;
  }
  const float amax = std::bit_cast<float>(max_bits);
  F16 scale = ToF16(amax / 127.0f);
  if (scale.bits > kMaxF16.bits) scale = kMaxF16;
  // Rounded down, a scale can leave the largest weight at 127.5 and more.
  if (scale.bits != 0 && scale.bits < kMaxF16.bits && amax / ToFloat(scale) >= 127.5f) {
    ++scale.bits;
  }
  Int8Group out;
  out.scale = scale;
  const float step = scale.bits == 0 ? 1.0f : ToFloat(scale);
  const float limit = scale.bits == 0 ? 0.0f : 127.0f;
  for (int i = 0; i < kInt8GroupSize; ++i) {
    float q = w[i] / step;
    q = q < -limit ? -limit : q;
    q = q > limit ? limit : q;
    out.values[i] = static_cast<uint8_t>(RoundToInt(q) + kInt8Offset);
  }
  return out;
}

}  // namespace banyan
