#include "common/quant/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace banyan {
namespace {

constexpr bool IsNan(uint16_t bits) { return (bits & 0x7fff) > 0x7f80; }

TEST(BF16, EveryValueSurvivesARoundTrip) {
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const BF16 value{static_cast<uint16_t>(i)};
    const float f = ToFloat(value);
    EXPECT_EQ(std::bit_cast<uint32_t>(f), i << 16);
    EXPECT_EQ(ToBF16(f).bits, IsNan(value.bits) ? 0x7fc0 : value.bits) << i;
  }
}

TEST(BF16, EveryMidpointTiesToEven) {
  for (uint32_t i = 0; i < 0xffff; ++i) {
    const auto low = static_cast<uint16_t>(i);
    if (IsNan(low) || (low & 0x7fff) == 0x7f80) continue;
    const uint32_t midpoint = (i << 16) | 0x8000u;
    const auto even = static_cast<uint16_t>(low + (low & 1));
    EXPECT_EQ(ToBF16(std::bit_cast<float>(midpoint)).bits, even) << i;
    EXPECT_EQ(ToBF16(std::bit_cast<float>(midpoint - 1)).bits, low) << i;
    EXPECT_EQ(ToBF16(std::bit_cast<float>(midpoint + 1)).bits, low + 1) << i;
  }
}

TEST(BF16, SpecialValues) {
  EXPECT_EQ(ToBF16(0.0f).bits, 0x0000);
  EXPECT_EQ(ToBF16(-0.0f).bits, 0x8000);
  EXPECT_EQ(ToBF16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  EXPECT_EQ(ToBF16(-std::numeric_limits<float>::infinity()).bits, 0xff80);
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::max()).bits, 0x7f80) << "rounds to infinity";
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::denorm_min()).bits, 0x0000);
  for (uint32_t bits :
       {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) {
    EXPECT_EQ(ToBF16(std::bit_cast<float>(bits)).bits, 0x7fc0) << bits;
  }
  static_assert(ToBF16(2.0f).bits == 0x4000);
  static_assert(ToFloat(BF16{0x4000}) == 2.0f);
}

TEST(BF16, ErrorIsAtMostHalfAUnitInTheLastPlace) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> mantissa(-2.0f, 2.0f);
  for (int i = 0; i < 100'000; ++i) {
    const float value = std::ldexp(mantissa(random), static_cast<int>(random() % 200) - 100);
    EXPECT_LE(std::fabs(ToFloat(ToBF16(value)) - value), std::fabs(value) / 256) << value;
  }
}

}  // namespace
}  // namespace banyan
