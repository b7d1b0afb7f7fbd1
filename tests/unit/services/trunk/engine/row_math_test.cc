#include "services/trunk/sampling/row_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "services/trunk/sampling/philox.h"

namespace banyan::trunk {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomRow(size_t size, std::mt19937* random, float spread = 8.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> row(size);
  for (float& x : row) x = normal(*random);
  return row;
}

// Known answers distributed with the paper's reference implementation (Random123, philox4x32-10).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformStaysBelowOneAndFillsTheInterval) {
  double sum = 0;
  double low = 1;
  double high = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = UniformAt(42, static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    low = std::min(low, u);
    high = std::max(high, u);
  }
  // Five standard deviations of the mean of uniforms.
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * std::sqrt(1.0 / 12.0 / kDraws));
  EXPECT_LT(low, 1e-3);
  EXPECT_GT(high, 1 - 1e-3);
  EXPECT_NE(UniformAt(1, 7), UniformAt(2, 7));
  EXPECT_NE(UniformAt(1, 7), UniformAt(1, 8));
  EXPECT_NE(UniformAt(uint64_t{1} << 32, 7), UniformAt(0, 7));
}

TEST(RowMathTest, SummaryAtAwkwardSizes) {
  std::mt19937 random(11);
  for (const size_t size : {1u, 2u, 15u, 16u, 17u, 63u, 64u, 65u, 255u, 257u, 1187u}) {
    std::vector<float> row = RandomRow(size, &random);
    const auto max = std::max_element(row.begin(), row.end());
    RowSummary summary = SummarizeRow(row);
    EXPECT_EQ(summary.max, *max) << size;
    EXPECT_TRUE(summary.finite) << size;
    EXPECT_EQ(FirstIndexOf(row, summary.max), max - row.begin());
    for (const float bad : {kNan, kInf, -kInf}) {
      for (const size_t at : {size_t{0}, size / 2, size - 1}) {
        std::vector<float> broken = row;
        broken[at] = bad;
        EXPECT_FALSE(SummarizeRow(broken).finite) << size << " at " << at << " " << bad;
      }
    }
  }
  EXPECT_EQ(SummarizeRow({}).max, -kInf);
}

TEST(RowMathTest, BoundAtAwkwardSizes) {
  std::mt19937 random(14);
  for (const size_t size : {1u, 3u, 15u, 16u, 17u, 64u, 255u, 1187u}) {
    std::vector<float> row = RandomRow(size, &random);
    row[size / 3] = std::nextafter(kLogitBound, 0.0f);
    row[size / 2] = -row[size / 3];
    EXPECT_TRUE(WithinBound(row)) << size;
    for (const float bad : {kNan, -kNan, kInf, -kInf, kLogitBound, -kLogitBound}) {
      for (const size_t at : {size_t{0}, size / 2, size - 1}) {
        std::vector<float> broken = row;
        broken[at] = bad;
        EXPECT_FALSE(WithinBound(broken)) << size << " at " << at << " " << bad;
      }
    }
  }
  EXPECT_TRUE(WithinBound({}));
}

TEST(RowMathTest, ExponentialWithinTwoUlp) {
  for (float x = 0.0f; x > -87.0f; x = x * 1.0001f - 1e-4f) {
    const double exact = std::exp(static_cast<double>(x));
    const auto nearest = static_cast<float>(exact);
    const double ulp = static_cast<double>(std::nextafter(nearest, kInf)) - nearest;
    ASSERT_NEAR(static_cast<double>(ExpNonPositive(x)), exact, 2 * ulp) << x;
  }
  EXPECT_EQ(ExpNonPositive(0.0f), 1.0f);
  EXPECT_EQ(ExpNonPositive(-88.0f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-3e38f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-kInf), 0.0f);
}

TEST(RowMathTest, ExpRowSumsWhatItWrites) {
  std::mt19937 random(12);
  for (const size_t size : {1u, 16u, 250u, 256u, 257u, 1000u, 151936u}) {
    const std::vector<float> row = RandomRow(size, &random);
    const float max = SummarizeRow(row).max;
    std::vector<float> out(size);
    const double total = ExpRow(row, max, 0.7f, out);
    EXPECT_EQ(total, ExpRow(row, max, 0.7f, {}));
    double expected = 0;
    for (size_t i = 0; i < size; ++i) {
      ASSERT_EQ(out[i], ExpNonPositive((row[i] - max) * 0.7f));
      expected += static_cast<double>(out[i]);
    }
    // Sixteen additions in f32 a lane: relative error within 16 epsilon.
    EXPECT_NEAR(total, expected, expected * 16 * 0x1.0p-24) << size;
  }
}

TEST(RowMathTest, SelectTopEqualsSorting) {
  constexpr uint32_t kSeed = 13;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  for (const size_t size : {1u, 5u, 63u, 64u, 65u, 300u, 4096u, 9999u}) {
    for (const bool ties : {false, true}) {
      std::vector<float> row = RandomRow(size, &random);
      if (ties) {
        for (float& x : row) x = std::round(x / 4);
      }
      if (random() % 2 == 0) std::sort(row.begin(), row.end());  // the worst order for a threshold
      std::vector<ScoredId> sorted;
      for (size_t i = 0; i < size; ++i) sorted.push_back({row[i], static_cast<int32_t>(i)});
      std::sort(sorted.begin(), sorted.end(), ScoresHigher);
      for (const int32_t count : {0, 1, 2, 20, 63, 64, 1000, 20000}) {
        std::vector<ScoredId> top = {{1, 1}};
        SelectTop(row, count, &top);
        ASSERT_EQ(top.size(), std::min(size, static_cast<size_t>(count)));
        for (size_t i = 0; i < top.size(); ++i) {
          ASSERT_EQ(top[i].id, sorted[i].id) << size << " top " << count << " at " << i;
          ASSERT_EQ(top[i].score, sorted[i].score);
        }
      }
    }
  }
}

}  // namespace
}  // namespace banyan::trunk
