#include "common/pool/generated_matrix.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "common/quant/packed_matrix.h"

namespace banyan {
namespace {

constexpr PoolFormat kFormats[] = {PoolFormat::kInt8, PoolFormat::kNF4, PoolFormat::kInt4};
constexpr uint64_t kSeed = 99;
constexpr float kDeviation = 0.03f;

std::vector<std::byte> Packed(PoolFormat format, const MatrixSlice& slice) {
  // Bytes that are not written would show.
  std::vector<std::byte> out(
      static_cast<size_t>(PackedMatrixBytes(format, slice.num_outputs, slice.num_inputs)),
      std::byte{0xee});
  GeneratePackedMatrix(format, kSeed, kDeviation, slice, out.data());
  return out;
}

std::vector<float> Weights(PoolFormat format, const MatrixSlice& slice) {
  std::vector<float> out(static_cast<size_t>(slice.num_outputs * slice.num_inputs));
  UnpackMatrix(format, Packed(format, slice).data(), slice.num_outputs, slice.num_inputs,
               out.data());
  return out;
}

TEST(GeneratedMatrixTest, ASliceHasTheWeightsOfTheWhole) {
  constexpr int64_t kOutputs = 150;
  constexpr int64_t kInputs = 330;
  for (const PoolFormat format : kFormats) {
    const std::vector<float> whole = Weights(format, {kInputs, 0, kOutputs, 0, kInputs});
    const int64_t group = PoolFormatGroup(format);
    for (const int64_t first_output : {0, 16, 96}) {
      for (const int64_t outputs : {int64_t{1}, int64_t{32}, kOutputs - first_output}) {
        for (const int64_t first_input : {int64_t{0}, group, 3 * group}) {
          for (const int64_t inputs : {group, 2 * group, kInputs - first_input}) {
            const std::vector<float> part =
                Weights(format, {kInputs, first_output, outputs, first_input, inputs});
            for (int64_t o = 0; o < outputs; ++o) {
              ASSERT_EQ(std::memcmp(part.data() + o * inputs,
                                    whole.data() + (first_output + o) * kInputs + first_input,
                                    static_cast<size_t>(inputs) * sizeof(float)),
                        0)
                  << PoolFormatName(format) << " output " << first_output + o << " input "
                  << first_input;
            }
          }
        }
      }
    }
  }
}

// As docs/formats/expert_pack.md says of every pack: the same bytes as of a matrix that is larger
// by zeros.
TEST(GeneratedMatrixTest, WhatLiesBeyondTheMatrixIsZero) {
  for (const PoolFormat format : kFormats) {
    const MatrixSlice slice = {70, 0, 18, 0, 70};
    const std::vector<std::byte> packed = Packed(format, slice);
    std::vector<float> padded(32 * 128);
    UnpackMatrix(format, packed.data(), 32, 128, padded.data());
    for (int64_t o = 0; o < 32; ++o) {
      for (int64_t i = 0; i < 128; ++i) {
        if (o < 18 && i < 70) continue;
        ASSERT_EQ(padded[static_cast<size_t>(o * 128 + i)], 0.0f)
            << PoolFormatName(format) << " " << o << " " << i;
      }
    }
  }
}

TEST(GeneratedMatrixTest, HasTheDeviationAndHardlyAMean) {
  for (const PoolFormat format : kFormats) {
    const std::vector<float> weights = Weights(format, {512, 0, 512, 0, 512});
    double sum = 0;
    double squares = 0;
    for (const float w : weights) {
      sum += w;
      squares += double{w} * w;
    }
    const auto n = static_cast<double>(weights.size());
    // nf4's table is not symmetric: 4.5 % of a deviation.
    EXPECT_LT(std::abs(sum / n) / kDeviation, format == PoolFormat::kNF4 ? 0.055 : 0.015)
        << PoolFormatName(format);
    EXPECT_NEAR(std::sqrt(squares / n) / kDeviation, 1, 0.01) << PoolFormatName(format);
  }
}

// The values stand in results that are compared between hosts and versions.
TEST(GeneratedMatrixTest, NeverChanges) {
  const auto hash = [](PoolFormat format) {
    const std::vector<std::byte> bytes = Packed(format, {200, 16, 50, 64, 100});
    return XXH3_64bits(bytes.data(), bytes.size());
  };
  EXPECT_EQ(hash(PoolFormat::kInt8), 1804553927069969735u);
  EXPECT_EQ(hash(PoolFormat::kNF4), 9784489107886161252u);
  EXPECT_EQ(hash(PoolFormat::kInt4), 18277423332600903493u);
}

}  // namespace
}  // namespace banyan
