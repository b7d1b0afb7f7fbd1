#include "common/io/generated_tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "common/quant/bf16.h"

namespace banyan {
namespace {

std::vector<uint16_t> Values(std::string_view name, int64_t first, int64_t count, float mean = 0,
                             float deviation = 1) {
  std::vector<uint16_t> out(static_cast<size_t>(count));
  GenerateBF16(GeneratedTensorSeed(name), mean, deviation, first,
               std::as_writable_bytes(std::span(out)));
  return out;
}

float AsFloat(uint16_t bits) {
  BF16 value;
  std::memcpy(&value, &bits, 2);
  return ToFloat(value);
}

TEST(GeneratedTensorTest, AnyPartHasTheValuesOfTheWhole) {
  const std::vector<uint16_t> whole = Values("a", 0, 1000);
  for (const int64_t first : {0, 1, 2, 3, 63, 64, 65, 501, 870, 998}) {
    for (int64_t count = 0; count <= 130 && first + count <= 1000; ++count) {
      const std::vector<uint16_t> part = Values("a", first, count);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first)) << first;
    }
  }
}

// Also where the counter outgrows its low half, 2^33 elements into a tensor.
TEST(GeneratedTensorTest, EveryInstructionSetGivesTheSameBits) {
  constexpr int64_t kCount = 2000;
  const auto make = [](GeneratorTier tier, int64_t first) {
    std::vector<uint16_t> out(kCount);
    GenerateBF16(tier, 42, 0.1f, 0.7f, first, std::as_writable_bytes(std::span(out)));
    return out;
  };
  for (const int64_t first : {int64_t{0}, int64_t{17}, (int64_t{1} << 33) - 1000}) {
    std::vector<uint16_t> one_by_one;
    for (int64_t i = 0; i < kCount; ++i) {
      uint16_t value;
      GenerateBF16(GeneratorTier::kPortable, 42, 0.1f, 0.7f, first + i,
                   std::as_writable_bytes(std::span(&value, 1)));
      one_by_one.push_back(value);
    }
    for (const GeneratorTier tier :
         {GeneratorTier::kPortable, GeneratorTier::kAvx2, GeneratorTier::kAvx512}) {
      if (!HasGeneratorTier(tier)) continue;
      EXPECT_EQ(make(tier, first), one_by_one) << first;
    }
  }
  EXPECT_NE(make(GeneratorTier::kPortable, 0), make(GeneratorTier::kPortable, int64_t{1} << 33));
}

// The values stand in results that are compared between hosts and versions.
TEST(GeneratedTensorTest, NeverChanges) {
  const std::vector<uint16_t> values =
      Values("model.layers.0.mlp.experts.0.gate_proj.weight", 0, 4);
  EXPECT_EQ(values, (std::vector<uint16_t>{16289, 48577, 48806, 48950}));
}

TEST(GeneratedTensorTest, HasTheMeanAndDeviation) {
  const std::vector<uint16_t> values = Values("b", 7, 200'000, 0.5f, 0.02f);
  double sum = 0;
  double squares = 0;
  for (const uint16_t value : values) {
    sum += AsFloat(value);
    squares += double{AsFloat(value)} * AsFloat(value);
    EXPECT_LE(std::abs(AsFloat(value) - 0.5f), 0.02f * 1.7321f + 0.002f);
  }
  const double mean = sum / 200'000;
  EXPECT_NEAR(mean, 0.5, 0.0002);  // four standard errors
  EXPECT_NEAR(std::sqrt(squares / 200'000 - mean * mean), 0.02, 0.0002);
  EXPECT_NE(Values("b", 0, 100), Values("c", 0, 100));
}

}  // namespace
}  // namespace banyan
