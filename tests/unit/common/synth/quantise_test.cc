#include "common/synth/quantise.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "common/quant/nf4.h"

namespace banyan {
namespace {

float FromE4M3(uint8_t code) {
  const int exponent = code >> 3 & 15;
  const auto mantissa = static_cast<float>(code & 7);
  const float magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8, exponent - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// Checkpoint spec 4.4: codes and scales of the worked example.
TEST(QuantiseNF4, MatchesTheSpecsVector) {
  constexpr float kScale[] = {1, 0.5f, 2, 0.75f};
  std::vector<float> w;
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 64; ++c) {
      w.push_back(static_cast<float>((37 * c + 11 + 5 * r) % 127 - 63) / 64.0f * kScale[r]);
    }
  }
  std::vector<std::byte> codes(128);
  std::vector<float> absmax(4);
  QuantiseNF4(w, codes.data(), absmax.data());
  std::string hex;
  for (const std::byte code : codes) hex += fmt::format("{:02x}", static_cast<int>(code));
  EXPECT_EQ(hex,
            "14bf28e15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16"
            "15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17"
            "16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17d04bf28"
            "27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17d04bf28d15bf29");
  EXPECT_EQ(absmax, (std::vector<float>{0.984375f, 0.4921875f, 1.96875f, 0.73828125f}));
}

TEST(QuantiseNF4, LeavesHalfAByteAndHalfABlock) {
  std::vector<float> w(67, 1.0f);
  w[66] = -2.0f;
  std::vector<std::byte> codes(34);
  std::vector<float> absmax(2);
  QuantiseNF4(w, codes.data(), absmax.data());
  EXPECT_EQ(absmax, (std::vector<float>{1, 2}));
  EXPECT_EQ(codes[31], std::byte{0xff});
  EXPECT_EQ(codes[32], std::byte{0xcc});  // 0.5 is nearest to 0.4407
  EXPECT_EQ(codes[33] >> 4, std::byte{0});
}

TEST(DynamicMap, HasTheSpecsEntries) {
  const std::span<const float, 256> map = DynamicMap();
  EXPECT_TRUE(std::is_sorted(map.begin(), map.end()));
  EXPECT_EQ(std::adjacent_find(map.begin(), map.end()), map.end());
  EXPECT_EQ(map[127], 0.0f);
  EXPECT_EQ(map[255], 1.0f);
  EXPECT_EQ(std::bit_cast<uint32_t>(map[0]), std::bit_cast<uint32_t>(-0.99296874f));
  EXPECT_EQ(std::bit_cast<uint32_t>(map[254]), std::bit_cast<uint32_t>(0.99296874f));
  EXPECT_EQ(std::bit_cast<uint32_t>(map[75]), 0xbd8a8f5du);
  EXPECT_EQ(std::bit_cast<uint32_t>(map[47]), 0xbeaa0000u);
}

TEST(NestScales, IsTheNearestEntryOfTheMap) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(0.1f, 0.4f);
  std::vector<float> absmax(600);
  for (float& x : absmax) x = uniform(random);
  const NestedScales scales = NestScales(absmax);
  ASSERT_EQ(scales.codes.size(), 600u);
  ASSERT_EQ(scales.nested_absmax.size(), 3u);
  for (size_t i = 0; i < absmax.size(); ++i) {
    const float x = absmax[i] - scales.offset;
    const float nested = scales.nested_absmax[i / 256];
    float nearest = INFINITY;
    for (const float entry : DynamicMap())
      nearest = std::min(nearest, std::abs(entry * nested - x));
    EXPECT_NEAR(std::abs(DynamicMap()[scales.codes[i]] * nested - x), nearest, 1e-7f) << i;
  }
}

TEST(NestScales, EqualScalesAreTheirMean) {
  const NestedScales scales = NestScales(std::vector<float>(300, 0.25f));
  EXPECT_EQ(scales.offset, 0.25f);
  EXPECT_EQ(scales.nested_absmax, (std::vector<float>{0, 0}));
  EXPECT_EQ(scales.codes, std::vector<uint8_t>(300, 127));
}

TEST(QuantiseInt8, RoundsToTheRowsScale) {
  const std::vector<float> w = {1, -2, 0.5f, 2, 0, 0, 0, 0};
  std::vector<std::byte> codes(8);
  std::vector<float> scb(2);
  QuantiseInt8Rows(w, 4, codes.data(), scb.data());
  EXPECT_EQ(scb, (std::vector<float>{2, 0}));
  const int8_t expected[] = {64, -127, 32, 127, 0, 0, 0, 0};  // 63.5 and 31.75, ties to even
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(static_cast<int8_t>(codes[i]), expected[i]) << i;
}

TEST(ToE4M3, EveryCodeIsItsOwnValue) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;  // NaN
    EXPECT_EQ(ToE4M3(FromE4M3(static_cast<uint8_t>(code))), code);
  }
  EXPECT_EQ(ToE4M3(1e9f), 0x7e);
  EXPECT_EQ(ToE4M3(-449), 0xfe);
}

TEST(ToE4M3, RoundsToTheNearestWithTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = FromE4M3(static_cast<uint8_t>(code));
    const float high = FromE4M3(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(ToE4M3(middle), code % 2 == 0 ? code : code + 1) << middle;
    EXPECT_EQ(ToE4M3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(ToE4M3(std::nextafter(middle, 500.0f)), code + 1);
  }
}

TEST(QuantiseFP8, UsesTheRoundedScaleOfItsBlock) {
  constexpr int64_t kCols = 130;
  std::vector<float> w(2 * kCols, 0.0f);
  w[3] = 448.0f * 0.7f;
  w[kCols + 5] = -100;
  w[129] = 0.5f;
  std::vector<std::byte> codes(w.size());
  std::vector<BF16> scales(2);
  QuantiseFP8Rows(w, kCols, codes.data(), scales.data());
  EXPECT_EQ(scales[0].bits, ToBF16(0.7f).bits);
  EXPECT_EQ(scales[1].bits, ToBF16(0.5f / 448).bits);
  for (size_t i = 0; i < w.size(); ++i) {
    const float scale = ToFloat(scales[i % kCols < 128 ? 0 : 1]);
    EXPECT_NEAR(FromE4M3(static_cast<uint8_t>(codes[i])) * scale, w[i], std::abs(w[i]) / 16) << i;
  }
}

TEST(QuantiseFP8, ZerosHaveAScale) {
  const std::vector<float> w(256, 0.0f);
  std::vector<std::byte> codes(256);
  std::vector<BF16> scales(1);
  QuantiseFP8Rows(w, 2, codes.data(), scales.data());
  EXPECT_EQ(ToFloat(scales[0]), 1.0f);
  EXPECT_TRUE(
      std::all_of(codes.begin(), codes.end(), [](std::byte b) { return b == std::byte{0}; }));
}

}  // namespace
}  // namespace banyan
