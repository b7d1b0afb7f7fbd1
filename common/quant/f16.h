// binary16: the scales of the integer pool formats. In software, so that every CPU gives the same
// bits; kernels may use F16C, whose conversion to f32 is the same function.
#pragma once

#include <bit>
#include <cstdint>

namespace banyan {

struct F16 {
  uint16_t bits;
};
static_assert(sizeof(F16) == 2);

// The largest finite one.
inline constexpr F16 kMaxF16 = {0x7bff};

// Exact.
constexpr float ToFloat(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | biased << 23 | mantissa << 13);
}

// Round to nearest, ties to even; overflows to infinity; every NaN becomes 0x7e00.
constexpr F16 ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return F16{0x7e00};
  if (magnitude >= 0x47800000u) return F16{static_cast<uint16_t>(sign | 0x7c00u)};  // 65536
  if (magnitude < 0x38800000u) {  // below 2^-14: the sum rounds to a multiple of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return F16{static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return F16{static_cast<uint16_t>(sign | (rounded - (uint32_t{127 - 15} << 23)) >> 13)};
}

}  // namespace banyan
