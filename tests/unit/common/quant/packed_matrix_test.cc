// Panels and chunks: where each weight goes, padding, cuts into panels, and bytes that must not
// change between versions and machines.
#include "common/quant/packed_matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "common/quant/bf16.h"
#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"

namespace banyan {
namespace {

std::vector<float> RandomWeights(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> out(static_cast<size_t>(n));
  // Not normal_distribution, whose values differ between standard libraries.
  for (float& value : out) value = (static_cast<float>(random() >> 8) * 0x1p-24f - 0.5f) * 0.1f;
  return out;
}

std::vector<std::byte> Pack(PoolFormat format, const FloatMatrix& matrix) {
  std::vector<std::byte> out(
      static_cast<size_t>(PackedMatrixBytes(format, matrix.num_outputs, matrix.k)),
      std::byte{0xa5});
  PackMatrix(format, matrix, out.data());
  return out;
}

struct Shape {
  int64_t num_outputs;
  int64_t k;
};
constexpr Shape kShapes[] = {{1, 1},   {16, 64},  {17, 65},   {5, 31},   {31, 33},
                             {48, 96}, {100, 32}, {15, 2048}, {64, 100}, {33, 160}};

TEST(PackedMatrixTest, NamesAndSizes) {
  for (const char* name : {"bf16", "int8", "nf4", "int4"}) {
    EXPECT_EQ(PoolFormatName(*ParsePoolFormat(name)), name);
  }
  EXPECT_FALSE(ParsePoolFormat("fp8").has_value());
  EXPECT_EQ(PackedMatrixBytes(PoolFormat::kBF16, 512, 2048), 512 * 2048 * 2);
  EXPECT_EQ(PackedMatrixBytes(PoolFormat::kInt8, 512, 2048), 512 * 2048 * 17 / 16);
  EXPECT_EQ(PackedMatrixBytes(PoolFormat::kInt4, 512, 2048), 512 * 2048 * 9 / 16);
  EXPECT_EQ(PackedMatrixBytes(PoolFormat::kNF4, 512, 2048), 512 * 2048 * 9 / 16);
  EXPECT_EQ(PackedMatrixBytes(PoolFormat::kInt8, 17, 65), 2 * 2 * 1088);
  EXPECT_EQ(PoolFormatGroup(PoolFormat::kInt4), 32);
}

TEST(PackedMatrixTest, BF16IsRowMajor) {
  const std::vector<float> w = RandomWeights(7 * 11, 1);
  const std::vector<std::byte> packed =
      Pack(PoolFormat::kBF16, {.data = w.data(), .num_outputs = 7, .k = 9, .row_stride = 11});
  ASSERT_EQ(packed.size(), 7u * 9 * 2);
  std::vector<float> out(7 * 9);
  UnpackMatrix(PoolFormat::kBF16, packed.data(), 7, 9, out.data());
  for (size_t o = 0; o < 7; ++o) {
    for (size_t i = 0; i < 9; ++i) {
      EXPECT_EQ(out[o * 9 + i], ToFloat(ToBF16(w[o * 11 + i])));
    }
  }
}

// What UnpackMatrix gives is what the codec gives for each group alone.
TEST(PackedMatrixTest, EveryWeightIsItsGroups) {
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kInt4}) {
    for (const Shape& s : kShapes) {
      const int64_t stride = s.k + 3;
      const std::vector<float> w = RandomWeights(s.num_outputs * stride, 2);
      const std::vector<std::byte> packed = Pack(
          format, {.data = w.data(), .num_outputs = s.num_outputs, .k = s.k, .row_stride = stride});
      std::vector<float> out(static_cast<size_t>(s.num_outputs * s.k));
      UnpackMatrix(format, packed.data(), s.num_outputs, s.k, out.data());
      for (int64_t o = 0; o < s.num_outputs; ++o) {
        for (int64_t first = 0; first < s.k; first += 32) {
          float group[32] = {};
          const int64_t n = std::min<int64_t>(32, s.k - first);
          std::copy_n(w.data() + o * stride + first, n, group);
          const Int8Group int8 = EncodeInt8Group(group);
          const Int4Group int4 = EncodeInt4Group(group);
          for (int64_t i = 0; i < n; ++i) {
            const float expected = format == PoolFormat::kInt8
                                       ? DecodeInt8(int8.scale, int8.values[i])
                                       : DecodeInt4(int4.scale, int4.values[i]);
            ASSERT_EQ(out[static_cast<size_t>(o * s.k + first + i)], expected)
                << PoolFormatName(format) << " [" << s.num_outputs << ", " << s.k << "] output "
                << o << " input " << first + i;
          }
        }
      }
    }
  }
}

// Unpacked as a matrix of whole panels and chunks, what lies beyond is zero.
TEST(PackedMatrixTest, PaddingDecodesToZero) {
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kInt4}) {
    for (const Shape& s : kShapes) {
      const std::vector<float> w = RandomWeights(s.num_outputs * s.k, 3);
      const std::vector<std::byte> packed = Pack(
          format, {.data = w.data(), .num_outputs = s.num_outputs, .k = s.k, .row_stride = s.k});
      const int64_t outputs = NumPanels(s.num_outputs) * kPanelOutputs;
      const int64_t k = NumChunks(s.k) * kChunkInputs;
      std::vector<float> out(static_cast<size_t>(outputs * k));
      UnpackMatrix(format, packed.data(), outputs, k, out.data());
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t i = 0; i < k; ++i) {
          if (o < s.num_outputs && i < s.k) continue;
          ASSERT_EQ(out[static_cast<size_t>(o * k + i)], 0.0f);
        }
      }
    }
  }
}

TEST(PackedMatrixTest, PanelsOneByOneGiveTheSameBytes) {
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kInt4}) {
    const std::vector<float> w = RandomWeights(100 * 96, 4);
    const FloatMatrix matrix = {.data = w.data(), .num_outputs = 100, .k = 96, .row_stride = 96};
    const std::vector<std::byte> whole = Pack(format, matrix);
    std::vector<std::byte> pieces(whole.size());
    for (int64_t panel = NumPanels(100) - 1; panel >= 0; --panel) {
      PackPanels(format, matrix, panel, panel + 1, pieces.data());
    }
    EXPECT_EQ(whole, pieces);
  }
}

// Byte for byte as documented: weight (output 3, input 37) of the second panel.
TEST(PackedMatrixTest, PlacesOfOneWeight) {
  std::vector<float> w(32 * 64, 0.0f);
  w[(16 + 3) * 64 + 37] = 127.0f;
  const FloatMatrix matrix = {.data = w.data(), .num_outputs = 32, .k = 64, .row_stride = 64};
  const std::vector<std::byte> int8 = Pack(PoolFormat::kInt8, matrix);
  for (size_t i = 0; i < 2 * 1088; ++i) {
    int expected = i % 1088 < 1024 ? 128 : 0;
    if (i == 1088 + 37 / 4 * 64 + 3 * 4 + 37 % 4) expected = 255;
    if (i == 1088 + 1024 + (16 + 3) * 2 + 1) expected = 0x3c;  // f16 1.0
    ASSERT_EQ(static_cast<int>(int8[i]), expected) << i;
  }
  w[(16 + 3) * 64 + 37] = -8.0f;
  const std::vector<std::byte> int4 = Pack(PoolFormat::kInt4, matrix);
  for (size_t i = 0; i < 2 * 576; ++i) {
    int expected = i % 576 < 512 ? 0x88 : 0;
    if (i == 576 + 37 / 8 * 64 + 3 * 4 + 37 % 4) expected = 0x08;  // input 37: an odd k-quad
    if (i == 576 + 512 + (16 + 3) * 2 + 1) expected = 0x3c;
    ASSERT_EQ(static_cast<int>(int4[i]), expected) << i;
  }
}

// FNV-1a of whole matrices: a change of any rounding changes it. Packs on disk depend on it.
TEST(PackedMatrixTest, BytesAreFixed) {
  const std::vector<float> w = RandomWeights(100 * 200, 5);
  const FloatMatrix matrix = {.data = w.data(), .num_outputs = 100, .k = 200, .row_stride = 200};
  const auto hash = [&](PoolFormat format) {
    uint64_t out = 14695981039346656037u;
    for (const std::byte byte : Pack(format, matrix)) {
      out = (out ^ static_cast<uint64_t>(byte)) * 1099511628211u;
    }
    return out;
  };
  EXPECT_EQ(hash(PoolFormat::kInt8), 3142951773582693331u);
  EXPECT_EQ(hash(PoolFormat::kInt4), 11491289233506585367u);
}

}  // namespace
}  // namespace banyan
