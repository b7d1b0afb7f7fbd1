// bfloat16: the upper half of an IEEE f32. Source: checkpoint spec 1.3.
#pragma once

#include <bit>
#include <cstdint>

namespace banyan {

struct BF16 {
  uint16_t bits;
};
static_assert(sizeof(BF16) == 2);

constexpr float ToFloat(BF16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest, ties to even; every NaN becomes 0x7fc0.
constexpr BF16 ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return BF16{0x7fc0};
  return BF16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace banyan
