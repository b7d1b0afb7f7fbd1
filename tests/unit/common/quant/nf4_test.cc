// NF4 against the worked example of checkpoint spec 4.4, its edges, and the packing of panels.
#include "common/quant/nf4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "common/quant/packed_matrix.h"
#include "tests/fakes/sha256.h"

namespace banyan {
namespace {

using test::Sha256;

template <class T>
std::string BytesOf(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

std::vector<std::byte> FromHex(std::string_view hex) {
  std::vector<std::byte> out;
  for (size_t i = 0; i < hex.size(); i += 2) {
    out.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return out;
}

constexpr char kExampleCodes[] =
    "14bf28e15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16"
    "15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17"
    "16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17d04bf28"
    "27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16c03ae17d04bf28d15bf29";

std::vector<float> ExampleWeights() {
  constexpr float kScales[] = {1.0f, 0.5f, 2.0f, 0.75f};
  std::vector<float> w;
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 64; ++c) {
      w.push_back(static_cast<float>((37 * c + 11 + 5 * r) % 127 - 63) / 64.0f * kScales[r]);
    }
  }
  return w;
}

std::vector<std::byte> Packed(int64_t num_outputs, int64_t k) {
  return std::vector<std::byte>(
      static_cast<size_t>(PackedMatrixBytes(PoolFormat::kNF4, num_outputs, k)), std::byte{0xa5});
}

TEST(NF4Test, ChecksumOfTheTest) {
  EXPECT_EQ(Sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(NF4Test, TableBits) {
  constexpr uint32_t kBits[] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0,
                                0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
                                0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(kNF4Table[i]), kBits[i]) << i;
}

TEST(NF4Test, ExampleEncodes) {
  constexpr uint32_t kAbsmax[] = {0x3f7c0000, 0x3efc0000, 0x3ffc0000, 0x3f3d0000};
  const std::vector<float> w = ExampleWeights();
  std::vector<std::byte> pairs;
  for (size_t r = 0; r < 4; ++r) {
    const NF4Block block = EncodeNF4Block(w.data() + r * 64);
    EXPECT_EQ(std::bit_cast<uint32_t>(block.absmax), kAbsmax[r]);
    for (size_t i = 0; i < 64; i += 2) {
      pairs.push_back(static_cast<std::byte>(block.codes[i] << 4 | block.codes[i + 1]));
    }
  }
  EXPECT_EQ(pairs, FromHex(kExampleCodes));
  EXPECT_EQ(Sha256(BytesOf(pairs)),
            "f3298c2e669ac4912dbb21c8f29028383890a6588c7fc634b3233fbd3269dbfb");
}

// Case A: from floats and from the checkpoint's codes.
TEST(NF4Test, ExampleDecodes) {
  const std::vector<float> w = ExampleWeights();
  const std::vector<std::byte> codes = FromHex(kExampleCodes);
  const std::vector<float> absmax = {0.984375f, 0.4921875f, 1.96875f, 0.73828125f};
  std::vector<std::byte> from_floats = Packed(4, 64);
  std::vector<std::byte> from_codes = Packed(4, 64);
  PackMatrix(PoolFormat::kNF4, {.data = w.data(), .num_outputs = 4, .k = 64, .row_stride = 64},
             from_floats.data());
  PackNF4Codes(
      {.codes = codes.data(), .absmax = absmax.data(), .num_outputs = 4, .k = 64, .row_codes = 64},
      from_codes.data());
  EXPECT_EQ(from_floats, from_codes);
  std::vector<float> values(4 * 64);
  UnpackMatrix(PoolFormat::kNF4, from_codes.data(), 4, 64, values.data());
  std::vector<BF16> rounded;
  double sum = 0;
  for (const float value : values) {
    rounded.push_back(ToBF16(value));
    EXPECT_EQ(ToFloat(rounded.back()), value) << "not a bf16";
    sum += value;
  }
  EXPECT_EQ(sum, 2.791259765625);
  EXPECT_EQ(Sha256(BytesOf(rounded)),
            "5c6e9837fda776fc1d191ba1ca568d603fb043cb9047c4875fc3600fa0d8d1ba");
}

// Case B: scales that were quantised themselves, resolved to f32.
TEST(NF4Test, DoublyQuantisedExampleDecodes) {
  const std::vector<std::byte> codes = FromHex(kExampleCodes);
  constexpr uint32_t kMap[] = {0xbd8a8f5d, 0xbf196667, 0x3f800000, 0xbeaa0000};
  constexpr uint32_t kAbsmax[] = {0x3f7bc426, 0x3efc5e7e, 0x3ffc0000, 0x3f3d4ec0};
  std::vector<float> absmax;
  for (const uint32_t bits : kMap) {
    const float product = std::bit_cast<float>(bits) * std::bit_cast<float>(0x3f6c4000u);
    absmax.push_back(product + std::bit_cast<float>(0x3f85e000u));
  }
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(absmax[i]), kAbsmax[i]);
  std::vector<std::byte> packed = Packed(4, 64);
  PackNF4Codes(
      {.codes = codes.data(), .absmax = absmax.data(), .num_outputs = 4, .k = 64, .row_codes = 64},
      packed.data());
  std::vector<float> values(4 * 64);
  UnpackMatrix(PoolFormat::kNF4, packed.data(), 4, 64, values.data());
  std::vector<BF16> rounded;
  for (const float value : values) rounded.push_back(ToBF16(value));
  EXPECT_EQ(Sha256(BytesOf(rounded)),
            "aeb9bccf2ccfc65dd50810201717b47ac17c6a1c4ce9ce858b85ffb1ae4468ca");
}

TEST(NF4Test, MidpointsGoDown) {
  for (int code = 0; code < 15; ++code) {
    float w[64] = {1.0f};  // absmax 1: weights are what is compared
    const float midpoint = (kNF4Table[code] + kNF4Table[code + 1]) * 0.5f;
    w[1] = midpoint;
    w[2] = std::nextafter(midpoint, 2.0f);
    w[3] = std::nextafter(midpoint, -2.0f);
    const NF4Block block = EncodeNF4Block(w);
    EXPECT_EQ(block.codes[1], code);
    EXPECT_EQ(block.codes[2], code + 1);
    EXPECT_EQ(block.codes[3], code);
  }
}

TEST(NF4Test, EveryCodeSurvivesARoundTrip) {
  float w[64];
  for (int i = 0; i < 64; ++i) w[i] = kNF4Table[i % 16] * 0.25f;
  const NF4Block block = EncodeNF4Block(w);
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(block.codes[i], i % 16);
    EXPECT_EQ(DecodeNF4(block.absmax, block.codes[i]).bits, ToBF16(w[i]).bits);
  }
}

TEST(NF4Test, ZerosAndWhatCountsAsZero) {
  for (const float largest : {0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), 1e-39f}) {
    float w[64] = {};
    w[9] = -largest;
    const NF4Block block = EncodeNF4Block(w);
    EXPECT_EQ(block.absmax, 0.0f);
    for (const uint8_t code : block.codes) EXPECT_EQ(code, kNF4Zero);
  }
}

TEST(NF4Test, SameBytesInEveryInstructionSet) {
  std::mt19937 random(3);
  for (int n = 0; n < 20000; ++n) {
    float w[64];
    for (float& value : w) {
      value = std::ldexp(static_cast<float>(static_cast<int32_t>(random())), n % 240 - 150);
    }
    const NF4Block a = EncodeNF4Block(w);
    const NF4Block b = EncodeNF4BlockPortably(w);
    ASSERT_EQ(std::bit_cast<uint32_t>(a.absmax), std::bit_cast<uint32_t>(b.absmax));
    ASSERT_TRUE(std::equal(a.codes, a.codes + 64, b.codes));
  }
}

TEST(NF4Test, PanelsArePaddedWithZeros) {
  std::mt19937 random(1);
  for (const auto& [num_outputs, k] : {std::pair<int64_t, int64_t>{1, 1}, {17, 65}, {31, 100}}) {
    std::vector<float> w(static_cast<size_t>(num_outputs * (k + 3)));
    for (float& value : w) value = static_cast<float>(random() % 2001) * 1e-3f - 1.0f;
    std::vector<std::byte> packed = Packed(num_outputs, k);
    const FloatMatrix matrix = {
        .data = w.data(), .num_outputs = num_outputs, .k = k, .row_stride = k + 3};
    PackMatrix(PoolFormat::kNF4, matrix, packed.data());
    std::vector<std::byte> by_panels = Packed(num_outputs, k);
    for (int64_t panel = 0; panel < NumPanels(num_outputs); ++panel) {
      PackPanels(PoolFormat::kNF4, matrix, panel, panel + 1, by_panels.data());
    }
    EXPECT_EQ(packed, by_panels);
    const int64_t all_k = NumChunks(k) * kChunkInputs;
    const int64_t all_outputs = NumPanels(num_outputs) * kPanelOutputs;
    std::vector<float> values(static_cast<size_t>(all_k * all_outputs));
    UnpackMatrix(PoolFormat::kNF4, packed.data(), all_outputs, all_k, values.data());
    for (int64_t o = 0; o < all_outputs; ++o) {
      for (int64_t c = 0; c < all_k; c += 64) {
        float part[64] = {};
        for (int64_t i = 0; i < 64 && o < num_outputs && c + i < k; ++i) {
          part[i] = w[static_cast<size_t>(o * (k + 3) + c + i)];
        }
        const NF4Block block = EncodeNF4Block(part);
        for (int64_t i = 0; i < 64; ++i) {
          EXPECT_EQ(values[static_cast<size_t>(o * all_k + c + i)],
                    ToFloat(DecodeNF4(block.absmax, block.codes[i])));
        }
      }
    }
  }
}

// A slice of columns and the outputs behind a checkpoint's: what a shard of a width packs.
TEST(NF4Test, SlicesOfCodes) {
  std::mt19937 random(2);
  constexpr int64_t kRows = 21, kRowCodes = 256;
  std::vector<std::byte> codes(kRows * kRowCodes / 2);
  for (std::byte& pair : codes) pair = static_cast<std::byte>(random());
  std::vector<float> absmax(kRows * kRowCodes / 64);
  for (float& value : absmax) value = 1.0f + static_cast<float>(random() % 100);
  const auto unpack = [&](int64_t k, int64_t offset) {
    std::vector<std::byte> packed = Packed(kRows, k);
    PackNF4Codes({.codes = codes.data(),
                  .absmax = absmax.data(),
                  .num_outputs = kRows,
                  .k = k,
                  .row_codes = kRowCodes,
                  .code_offset = offset},
                 packed.data());
    std::vector<float> values(static_cast<size_t>(kRows * k));
    UnpackMatrix(PoolFormat::kNF4, packed.data(), kRows, k, values.data());
    return values;
  };
  const std::vector<float> all = unpack(kRowCodes, 0);
  for (int64_t o = 0; o < kRows; ++o) {
    for (int64_t i = 0; i < kRowCodes; ++i) {
      const int64_t at = o * kRowCodes + i;
      const auto pair = static_cast<uint8_t>(codes[static_cast<size_t>(at / 2)]);
      const auto code = static_cast<uint8_t>(i % 2 == 0 ? pair >> 4 : pair & 15);
      ASSERT_EQ(all[static_cast<size_t>(at)],
                ToFloat(DecodeNF4(absmax[static_cast<size_t>(at / 64)], code)));
    }
  }
  const std::vector<float> slice = unpack(64, 128);
  for (int64_t o = 0; o < kRows; ++o) {
    for (int64_t i = 0; i < 64; ++i) {
      ASSERT_EQ(slice[static_cast<size_t>(o * 64 + i)],
                all[static_cast<size_t>(o * kRowCodes + 128 + i)]);
    }
  }
}

}  // namespace
}  // namespace banyan
