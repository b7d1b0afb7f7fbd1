// Decoding of checkpoints' quantised matrices against the worked examples of checkpoint spec 3
// to 5.
#include "common/quant/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "common/quant/bf16.h"
#include "common/quant/f8_e4m3.h"
#include "common/quant/nf4.h"
#include "tests/fakes/sha256.h"

namespace banyan {
namespace {

constexpr std::string_view kExampleCodes =
    "14bf28e15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16"
    "15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17"
    "16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17d04bf28"
    "27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17d04bf28d15bf29";

std::vector<std::byte> ExampleCodes() {
  std::vector<std::byte> out;
  for (size_t i = 0; i < kExampleCodes.size(); i += 2) {
    const std::string pair(kExampleCodes.substr(i, 2));
    out.push_back(static_cast<std::byte>(std::stoi(pair, nullptr, 16)));
  }
  return out;
}

std::string HashOfFloats(const std::vector<float>& values) {
  return test::Sha256({reinterpret_cast<const char*>(values.data()), values.size() * 4});
}

std::string HashOfBF16(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) {
    const BF16 rounded = ToBF16(value);
    EXPECT_EQ(ToFloat(rounded), value) << "not a bf16";
    bytes.append(reinterpret_cast<const char*>(&rounded), sizeof(rounded));
  }
  return test::Sha256(bytes);
}

struct Example {
  std::vector<std::byte> codes = ExampleCodes();
  std::vector<float> absmax;

  std::vector<float> Decode(DType dtype) const {
    std::vector<float> out(256);
    DequantizeBnb4({.codes = codes.data(),
                    .table = kNF4Table,
                    .absmax = absmax.data(),
                    .block_size = 64,
                    .dtype = dtype},
                   0, 256, out.data());
    return out;
  }
};

TEST(DequantizeBnb4Test, CaseA) {
  Example example;
  example.absmax = {0.984375f, 0.4921875f, 1.96875f, 0.73828125f};
  const std::vector<float> f32 = example.Decode(DType::kF32);
  constexpr uint32_t kFirst[] = {0xbf2f70ca, 0xbe8f5bc4, 0x3eaa4f2d, 0x3f7c0000,
                                 0xbf045183, 0x3da06f13, 0x3f362f64, 0xbf2f70ca};
  double sum = 0;
  for (const float value : f32) sum += value;
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(f32[i]), kFirst[i]) << i;
  EXPECT_EQ(sum, 2.729811728000641);
  EXPECT_EQ(HashOfFloats(f32), "9cf5a744b382f98883ea9981f0c3a073b2456f97d50345a360b8c22c8e3926f6");
  EXPECT_EQ(HashOfBF16(example.Decode(DType::kBF16)),
            "5c6e9837fda776fc1d191ba1ca568d603fb043cb9047c4875fc3600fa0d8d1ba");
}

TEST(DequantizeBnb4Test, CaseBWithQuantisedScales) {
  const uint8_t codes[] = {75, 28, 255, 47};
  std::vector<float> map(256, 9.0f);
  map[75] = std::bit_cast<float>(0xbd8a8f5du);
  map[28] = std::bit_cast<float>(0xbf196667u);
  map[255] = 1.0f;
  map[47] = std::bit_cast<float>(0xbeaa0000u);
  const float nested_absmax = 0.9228515625f;
  Example example;
  example.absmax.resize(4);
  DequantizeAbsmax(codes, map.data(), &nested_absmax, 256, 1.0458984375f, example.absmax.data());
  constexpr uint32_t kAbsmax[] = {0x3f7bc426, 0x3efc5e7e, 0x3ffc0000, 0x3f3d4ec0};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(example.absmax[i]), kAbsmax[i]) << i;
  }
  EXPECT_EQ(HashOfFloats(example.Decode(DType::kF32)),
            "f9f619640510c42e8b03fad8bc99aa24f9fd5a20dcc9523a2dec5d5f2d90b4af");
  EXPECT_EQ(HashOfBF16(example.Decode(DType::kBF16)),
            "aeb9bccf2ccfc65dd50810201717b47ac17c6a1c4ce9ce858b85ffb1ae4468ca");
}

TEST(DequantizeBnb4Test, AnyRangeFromAnyEvenCode) {
  Example example;
  example.absmax = {0.5f, -1.0f, 0.0f, 3.0f};
  const std::vector<float> whole = example.Decode(DType::kF32);
  for (int64_t first_code = 0; first_code <= 70; first_code += 14) {
    for (int64_t first = first_code; first < 131; first += 3) {
      for (const int64_t count : {0, 1, 2, 63, 64, 65, 125}) {
        std::vector<float> part(static_cast<size_t>(count) + 1, 7.5f);
        DequantizeBnb4({.codes = example.codes.data() + first_code / 2,
                        .first_code = first_code,
                        .table = kNF4Table,
                        .absmax = example.absmax.data(),
                        .block_size = 64,
                        .dtype = DType::kF32},
                       first, count, part.data());
        for (int64_t i = 0; i < count; ++i) {
          ASSERT_EQ(part[static_cast<size_t>(i)], whole[static_cast<size_t>(first + i)])
              << first_code << " " << first << " " << i;
        }
        ASSERT_EQ(part.back(), 7.5f);
      }
    }
  }
}

TEST(F8E4M3Test, Values) {
  EXPECT_EQ(kF8E4M3Table[0x00], 0.0f);
  EXPECT_TRUE(std::signbit(kF8E4M3Table[0x80]));
  EXPECT_EQ(kF8E4M3Table[0x01], 0x1p-9f);
  EXPECT_EQ(kF8E4M3Table[0x07], 7 * 0x1p-9f);
  EXPECT_EQ(kF8E4M3Table[0x08], 0x1p-6f);
  EXPECT_EQ(kF8E4M3Table[0x38], 1.0f);
  EXPECT_EQ(kF8E4M3Table[0x3c], 1.5f);
  EXPECT_EQ(kF8E4M3Table[0x7e], 448.0f);
  EXPECT_TRUE(std::isnan(kF8E4M3Table[0x7f]));
  EXPECT_TRUE(std::isnan(kF8E4M3Table[0xff]));
  for (size_t i = 1; i < 0x7f; ++i) {
    EXPECT_GT(kF8E4M3Table[i], kF8E4M3Table[i - 1]) << i;
    EXPECT_EQ(kF8E4M3Table[i | 0x80], -kF8E4M3Table[i]) << i;
  }
}

TEST(DequantizeF8RowTest, ScalesOfColumns) {
  const std::byte row[] = {std::byte{0x38}, std::byte{0xb8}, std::byte{0x7e}, std::byte{0x01},
                           std::byte{0x3c}};
  const float scales[] = {3.0f, 0.1f, -2.0f};
  std::vector<float> out(5);
  DequantizeF8Row(row, scales, 2, DType::kF32, out);
  EXPECT_EQ(out, (std::vector<float>{3.0f, -3.0f, 448.0f * 0.1f, 0x1p-9f * 0.1f, -3.0f}));
  DequantizeF8Row(row, scales, 2, DType::kBF16, out);
  EXPECT_EQ(out[2], ToFloat(ToBF16(448.0f * 0.1f)));
}

TEST(DequantizeInt8RowTest, InTheLibrarysOrder) {
  const std::byte row[] = {std::byte{127}, std::byte{0x81}, std::byte{0}, std::byte{0x80},
                           std::byte{53}};
  const float scb = 0.7310585975646973f;
  std::vector<float> out(5);
  DequantizeInt8Row(row, scb, DType::kF32, out);
  const int values[] = {127, -127, 0, -128, 53};
  for (size_t i = 0; i < 5; ++i) {
    const float product = static_cast<float>(values[i]) * scb;
    EXPECT_EQ(out[i], product * 0.007874015718698502f) << i;
  }
  DequantizeInt8Row(row, scb, DType::kBF16, out);
  EXPECT_EQ(out[4], ToFloat(ToBF16(53.0f * scb * 0.007874015718698502f)));
}

TEST(RoundToTest, DTypes) {
  const float value = 1.0f + 0x1p-9f + 0x1p-12f;
  EXPECT_EQ(RoundTo(DType::kF32, value), value);
  EXPECT_EQ(RoundTo(DType::kBF16, value), 1.0f);
  EXPECT_EQ(RoundTo(DType::kF16, value), 1.0f + 0x1p-9f);
}

}  // namespace
}  // namespace banyan
