// Rounding to integers that compilers vectorise for any instruction set.
#pragma once

#include <bit>
#include <cstdint>

namespace banyan {

// `value` to nearest, ties to even, for |value| < 2^22: beside 1.5 * 2^23 a float has no fraction.
constexpr int32_t RoundToInt(float value) {
  constexpr float kShift = 0x1.8p23f;
  return static_cast<int32_t>(std::bit_cast<uint32_t>(value + kShift) -
                              std::bit_cast<uint32_t>(kShift));
}

}  // namespace banyan
