// FP8 e4m3 ("fn": no infinities): s eeee mmm, exponent bias 7. Source: checkpoint spec 3.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace banyan {

// Exact. 0x7f and 0xff are NaN; the largest finite value is 448 (0x7e).
constexpr float DecodeF8E4M3(uint8_t bits) {
  const uint32_t sign = (bits & 0x80u) << 24;
  const uint32_t exponent = (bits >> 3) & 0x0fu;
  const uint32_t mantissa = bits & 0x07u;
  if ((bits & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {  // a multiple of 2^-9
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | (exponent + (127 - 7)) << 23 | mantissa << 20);
}

inline constexpr std::array<float, 256> kF8E4M3Table = [] {
  std::array<float, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) table[i] = DecodeF8E4M3(static_cast<uint8_t>(i));
  return table;
}();

}  // namespace banyan
