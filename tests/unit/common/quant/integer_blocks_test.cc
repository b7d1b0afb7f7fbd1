// The int8 and int4 codecs, and f16.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/quant/f16.h"
#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "common/quant/round_int.h"

namespace banyan {
namespace {

TEST(F16Test, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const F16 value = {static_cast<uint16_t>(bits)};
    const float wide = ToFloat(value);
    if ((bits & 0x7fffu) > 0x7c00u) {
      EXPECT_TRUE(std::isnan(wide));
      EXPECT_EQ(ToF16(wide).bits, 0x7e00);
      continue;
    }
    ASSERT_EQ(ToF16(wide).bits, bits);
    const int exponent = static_cast<int>(bits >> 10 & 31u);
    if (exponent == 31) continue;
    const double mantissa = static_cast<double>(bits & 0x3ffu);
    const double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
    ASSERT_EQ(static_cast<double>(wide), (bits >> 15) != 0 ? -expected : expected);
  }
}

// Half-way points between neighbours, and the floats beside them.
TEST(F16Test, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const float low = ToFloat(F16{static_cast<uint16_t>(bits)});
    const float high = ToFloat(F16{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;  // exact
    ASSERT_EQ(ToF16(middle).bits, bits + (bits & 1u));
    ASSERT_EQ(ToF16(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(ToF16(-std::nextafter(middle, 1e9f)).bits, (bits + 1) | 0x8000u);
  }
  EXPECT_EQ(ToF16(65519.9f).bits, 0x7bff);
  EXPECT_EQ(ToF16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToF16(-std::numeric_limits<float>::max()).bits, 0xfc00);
  EXPECT_EQ(ToF16(1e-10f).bits, 0);
}

TEST(RoundToIntTest, TiesGoToEven) {
  EXPECT_EQ(RoundToInt(0.5f), 0);
  EXPECT_EQ(RoundToInt(1.5f), 2);
  EXPECT_EQ(RoundToInt(-2.5f), -2);
  EXPECT_EQ(RoundToInt(-2.51f), -3);
  EXPECT_EQ(RoundToInt(126.5f), 126);
  EXPECT_EQ(RoundToInt(32639.0f), 32639);
  EXPECT_EQ(RoundToInt(-32638.5f), -32638);
}

// Groups over the magnitudes that f16 scales reach, flat and peaked ones.
std::vector<std::vector<float>> Groups() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> out;
  for (int exponent = -30; exponent <= 16; ++exponent) {
    for (const bool peaked : {false, true}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        std::vector<float> group;
        for (int i = 0; i < 32; ++i) {
          const float value = peaked ? std::pow(normal(random) / 4, 5.0f) : normal(random);
          group.push_back(std::ldexp(std::clamp(value, -4.0f, 4.0f), exponent - 2));
        }
        out.push_back(group);
      }
    }
  }
  return out;
}

double MaxMagnitude(const std::vector<float>& group) {
  double out = 0;
  for (const float value : group) out = std::max(out, std::abs(static_cast<double>(value)));
  return out;
}

TEST(Int8BlockTest, ErrorIsHalfAStepOrLess) {
  for (const std::vector<float>& group : Groups()) {
    const Int8Group encoded = EncodeInt8Group(group.data());
    const double scale = ToFloat(encoded.scale);
    const double amax = MaxMagnitude(group);
    // amax / 127 rounded to f16's 11 bits or to a multiple of 2^-24, perhaps one step up.
    EXPECT_NEAR(scale, amax / 127, std::max(amax / 127 * 0x1p-10, 0x1p-24));
    int32_t largest = 0;
    for (size_t i = 0; i < 32; ++i) {
      const int32_t q = encoded.values[i] - kInt8Offset;
      largest = std::max(largest, std::abs(q));
      ASSERT_GE(q, -127);
      ASSERT_NEAR(DecodeInt8(encoded.scale, encoded.values[i]), group[i],
                  std::max(scale * (0.5 + 1e-5), scale == 0 ? amax : 0));
    }
    // The range is used where f16 has its 11 bits.
    if (scale >= 0x1p-14) {
      EXPECT_GE(largest, 126);
    }
  }
}

// A scale rounded down to a subnormal would leave the largest weight beyond 127.
TEST(Int8BlockTest, NoWeightIsCutWithinTheRangeOfScales) {
  for (int i = 1; i < 4000; ++i) {
    std::vector<float> group(32, 0.0f);
    group[7] = -0x1p-24f * static_cast<float>(i) * 1.37f;
    const Int8Group encoded = EncodeInt8Group(group.data());
    if (encoded.scale.bits == 0) continue;
    ASSERT_NEAR(DecodeInt8(encoded.scale, encoded.values[7]), group[7],
                ToFloat(encoded.scale) * 0.50001);
  }
}

TEST(Int8BlockTest, ZeroAndExtremeGroups) {
  std::vector<float> group(32, 0.0f);
  group[3] = -0.0f;
  Int8Group encoded = EncodeInt8Group(group.data());
  EXPECT_EQ(encoded.scale.bits, 0);
  for (const uint8_t value : encoded.values) EXPECT_EQ(value, 128);

  std::fill(group.begin(), group.end(), 1e-12f);
  encoded = EncodeInt8Group(group.data());
  EXPECT_EQ(encoded.scale.bits, 0);
  for (const uint8_t value : encoded.values) EXPECT_EQ(value, 128);

  group[0] = std::numeric_limits<float>::max();
  group[1] = -group[0];
  encoded = EncodeInt8Group(group.data());
  EXPECT_EQ(encoded.scale.bits, kMaxF16.bits);
  EXPECT_EQ(encoded.values[0], 255);
  EXPECT_EQ(encoded.values[1], 1);
}

TEST(Int8BlockTest, KnownBytes) {
  std::vector<float> group(32, 0.0f);
  for (size_t i = 0; i < 32; ++i) group[i] = static_cast<float>(i) - 4.0f;
  group[31] = -127.0f;
  const Int8Group encoded = EncodeInt8Group(group.data());
  EXPECT_EQ(encoded.scale.bits, 0x3c00);  // 1
  for (size_t i = 0; i < 31; ++i) EXPECT_EQ(encoded.values[i], 128 + static_cast<int>(i) - 4);
  EXPECT_EQ(encoded.values[31], 1);
}

TEST(Int4BlockTest, TakesTheBestOfItsScales) {
  for (const std::vector<float>& group : Groups()) {
    const Int4Group encoded = EncodeInt4Group(group.data());
    const double amax = MaxMagnitude(group);
    double error = 0;
    for (size_t i = 0; i < 32; ++i) {
      ASSERT_LE(encoded.values[i], 15);
      error += std::pow(DecodeInt4(encoded.scale, encoded.values[i]) - group[i], 2);
    }
    if (encoded.scale.bits == 0) {
      EXPECT_LE(amax, 0x1p-21);
      continue;
    }
    // With m / -8 nothing is off by more than half a step, except up to a whole one at the other
    // end; subnormal scales add their own rounding, eight times.
    const double step = amax / 8 * (1 + 0x1p-11);
    const double subnormal = 8 * 0x1p-25;
    EXPECT_LE(error, 32 * std::pow(step + subnormal, 2));
    double first_scale_error = 0;
    float m = group[0];
    for (const float value : group) {
      if (std::abs(value) > std::abs(m) || value == -m) m = value;
    }
    for (const float value : group) {
      if (value == static_cast<float>(amax)) m = value;
    }
    const float first_scale = ToFloat(ToF16(m / -8.0f));
    if (first_scale == 0.0f) continue;
    for (const float value : group) {
      const float q = std::clamp(std::nearbyint(value / first_scale), -8.0f, 7.0f);
      first_scale_error += std::pow(first_scale * q - value, 2);
    }
    EXPECT_LE(error, first_scale_error * (1 + 1e-5));
  }
}

TEST(Int4BlockTest, AllPathsGiveTheSameBytes) {
  for (const std::vector<float>& group : Groups()) {
    const Int4Group a = EncodeInt4Group(group.data());
    const Int4Group b = EncodeInt4GroupPortably(group.data());
    ASSERT_EQ(a.scale.bits, b.scale.bits);
    ASSERT_EQ(std::memcmp(a.values, b.values, sizeof(a.values)), 0);
  }
}

TEST(Int4BlockTest, GridPointsAreExact) {
  std::vector<float> group;
  for (int i = 0; i < 32; ++i) group.push_back(0.25f * static_cast<float>(i % 16 - 8));
  const Int4Group encoded = EncodeInt4Group(group.data());
  EXPECT_EQ(ToFloat(encoded.scale), 0.25f);
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(encoded.values[i], i % 16);
    EXPECT_EQ(DecodeInt4(encoded.scale, encoded.values[i]), group[i]);
  }
  for (float& value : group) value = -value;  // a negative scale keeps the range
  const Int4Group mirrored = EncodeInt4Group(group.data());
  EXPECT_EQ(ToFloat(mirrored.scale), -0.25f);
  EXPECT_EQ(std::memcmp(mirrored.values, encoded.values, 32), 0);
}

TEST(Int4BlockTest, ZeroGroup) {
  const std::vector<float> group(32, 0.0f);
  const Int4Group encoded = EncodeInt4Group(group.data());
  EXPECT_EQ(encoded.scale.bits, 0);
  for (const uint8_t value : encoded.values) EXPECT_EQ(value, 8);
}

}  // namespace
}  // namespace banyan
