// Every tier of the integer pool formats against the oracle; the same bits in every tier; and the
// promise that a row's bits depend neither on other rows nor on how panels are cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "tests/fakes/same_bits.h"
#include "tests/kernels/expert/emulated_amx.h"
#include "tests/kernels/expert/packed_int_problem.h"
#include "tests/kernels/expert/packed_sums.h"

namespace banyan::expert {
namespace {

using test::SameBits;
using testing::AlignedBytes;
using testing::OracleOfPair;
using testing::PackedOracle;
using testing::PackedProblem;
using testing::PackedShape;
using testing::PanelCut;
using testing::RunAll;
using testing::RunPacked;
using testing::Zeros;

std::vector<const PackedKernels*> Cases() {
  std::vector<const PackedKernels*> out;
  for (const PackedKernels* kernels : AvailablePackedKernels(ReadCpuFeatures())) {
    if (kernels->format == PoolFormat::kInt8 || kernels->format == PoolFormat::kInt4) {
      out.push_back(kernels);
    }
  }
#if defined(__x86_64__)
  if (ReadCpuFeatures().avx512_vnni) {
    for (const PackedKernels& kernels : testing::kEmulatedAmx) out.push_back(&kernels);
  }
#endif
  return out;
}

std::string NameOf(const PackedKernels& kernels) {
  return std::string(kernels.tier) + "_" + std::string(PoolFormatName(kernels.format)) +
         (kernels.precision == Precision::kExact ? "_exact" : "_fast");
}

class PackedIntTest : public ::testing::TestWithParam<const PackedKernels*> {
 protected:
  const PackedKernels& kernels() const { return *GetParam(); }
  const PackedKernels& scalar() const {
    return *FindPackedKernels(kernels().format, kernels().precision, "scalar", {});
  }
};

INSTANTIATE_TEST_SUITE_P(Tiers, PackedIntTest, ::testing::ValuesIn(Cases()),
                         [](const auto& tested) { return NameOf(*tested.param); });

void ExpectOracle(const PackedKernels& kernels, const PackedProblem& p,
                  const std::vector<float>& sum) {
  const auto hidden_size = static_cast<size_t>(p.shape.hidden_size);
  for (int32_t i = 0; i < p.shape.num_rows; ++i) {
    const PackedOracle oracle = OracleOfPair(p, kernels.precision, i);
    const size_t row = static_cast<size_t>(p.rows[static_cast<size_t>(i)]);
    for (size_t o = 0; o < hidden_size; ++o) {
      ASSERT_NEAR(sum[row * hidden_size + o], oracle.value[o], oracle.bound[o])
          << "pair " << i << " output " << o;
      ASSERT_EQ(sum[(row + 1) * hidden_size + o], 0.0f) << "a row that the expert did not get";
    }
  }
}

std::string Describe(const PackedShape& s) {
  return "hidden_size " + std::to_string(s.hidden_size) + " width " + std::to_string(s.width) +
         " rows " + std::to_string(s.num_rows);
}

constexpr int32_t kHiddenSizes[] = {64, 100, 128, 33, 1};
constexpr int32_t kWidths[] = {32, 64, 96, 192, 17, 80};

TEST_P(PackedIntTest, AwkwardShapesMatchOracleAndScalar) {
  std::mt19937 random(1);
  int32_t num_rows = 0;
  for (const int32_t hidden_size : kHiddenSizes) {
    for (const int32_t width : kWidths) {
      num_rows = num_rows % 19 + 1;
      const PackedShape shape{hidden_size, width, num_rows};
      SCOPED_TRACE(Describe(shape));
      const PackedProblem problem(kernels().format, shape, random);
      const std::vector<float> sum = RunAll(kernels(), problem);
      ASSERT_NO_FATAL_FAILURE(ExpectOracle(kernels(), problem, sum));
      ASSERT_TRUE(SameBits(sum, RunAll(scalar(), problem)));
    }
  }
}

TEST_P(PackedIntTest, EveryRowCountMatchesOracleAndScalar) {
  std::mt19937 random(2);
  for (int32_t num_rows = 1; num_rows <= 70; ++num_rows) {
    const PackedShape shape{100, 48, num_rows};
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    const std::vector<float> sum = RunAll(kernels(), problem);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(kernels(), problem, sum));
    ASSERT_TRUE(SameBits(sum, RunAll(scalar(), problem)));
  }
}

TEST_P(PackedIntTest, RealSizesMatchOracleAndScalar) {
  std::mt19937 random(3);
  for (const PackedShape& shape :
       {PackedShape{2048, 512, 1}, PackedShape{2048, 64, 9}, PackedShape{2048, 192, 3},
        PackedShape{128, 512, 12}, PackedShape{2048, 32, 17}}) {
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    const std::vector<float> sum = RunAll(kernels(), problem);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(kernels(), problem, sum));
    ASSERT_TRUE(SameBits(sum, RunAll(scalar(), problem)));
  }
}

// More rows than a pass over the weights takes.
TEST_P(PackedIntTest, ManyRowsMatchScalar) {
  std::mt19937 random(4);
  for (const PackedShape& shape : {PackedShape{1100, 80, 203}, PackedShape{8192, 32, 55}}) {
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    ASSERT_TRUE(SameBits(RunAll(kernels(), problem), RunAll(scalar(), problem)));
  }
}

TEST_P(PackedIntTest, RowsDoNotDependOnOtherRowsOrOnCuts) {
  std::mt19937 random(5);
  for (const PackedShape& shape : {PackedShape{128, 96, 70}, PackedShape{100, 192, 23},
                                   PackedShape{2048, 64, 17}, PackedShape{96, 80, 9}}) {
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    const std::vector<float> together = RunAll(kernels(), problem);
    for (const int32_t group : {1, 2, 3, 5, 8, 13, 16}) {
      for (const PanelCut& cut : {PanelCut{}, PanelCut{4, 1}, PanelCut{8, 3}, PanelCut{4, 6}}) {
        std::vector<float> apart = Zeros(problem);
        for (int32_t i = 0; i < shape.num_rows; i += group) {
          RunPacked(kernels(), problem, i, std::min(group, shape.num_rows - i), cut, &apart);
        }
        ASSERT_TRUE(SameBits(together, apart))
            << "groups of " << group << ", cut at " << cut.gate_up << " and " << cut.down;
      }
    }
  }
}

TEST_P(PackedIntTest, AddsToTheSum) { testing::ExpectAddsToTheSum(kernels()); }

TEST_P(PackedIntTest, SetsTheSum) { testing::ExpectSetsTheSum(kernels()); }

TEST_P(PackedIntTest, ZeroWeightsGiveZero) {
  std::mt19937 random(7);
  const PackedProblem problem(kernels().format, {100, 64, 5}, random, /*zero_gate=*/true);
  for (const float value : RunAll(kernels(), problem)) ASSERT_EQ(value, 0.0f);
}

TEST_P(PackedIntTest, ZeroRowsGiveZero) {
  std::mt19937 random(8);
  PackedProblem problem(kernels().format, {100, 64, 5}, random);
  std::fill(problem.x.begin(), problem.x.end(), -0.0f);
  problem.x[3] = 1e-38f;  // counts as zero
  for (const float value : RunAll(kernels(), problem)) ASSERT_EQ(value, 0.0f);
}

// One NaN or infinity makes its row NaN and leaves every bit of the others.
TEST_P(PackedIntTest, NonFiniteRowsStayAlone) {
  std::mt19937 random(9);
  PackedProblem problem(kernels().format, {100, 80, 21}, random);
  const std::vector<float> expected = RunAll(kernels(), problem);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    for (const int32_t pair : {0, 7, 20}) {
      for (const int32_t column : {0, 63, 99}) {
        const auto row = static_cast<size_t>(problem.rows[static_cast<size_t>(pair)]);
        float& value = problem.x[row * 100 + static_cast<size_t>(column)];
        const float good = value;
        value = bad;
        const std::vector<float> sum = RunAll(kernels(), problem);
        value = good;
        for (size_t i = 0; i < sum.size(); ++i) {
          if (i / 100 == row) {
            ASSERT_TRUE(std::isnan(sum[i])) << i;
          } else {
            ASSERT_EQ(std::memcmp(&sum[i], &expected[i], sizeof(float)), 0) << i;
          }
        }
      }
    }
  }
}

// Activations over all magnitudes of f32: no crash, no bits that depend on the tier.
TEST_P(PackedIntTest, ExtremeActivationsMatchScalar) {
  std::mt19937 random(10);
  PackedProblem problem(kernels().format, {96, 64, 40}, random);
  for (size_t i = 0; i < problem.x.size(); ++i) {
    problem.x[i] = std::ldexp(problem.x[i], static_cast<int>(i / 96 * 3) - 140);
  }
  const std::vector<float> sum = RunAll(kernels(), problem);
  const std::vector<float> expected = RunAll(scalar(), problem);
  for (size_t i = 0; i < sum.size(); ++i) {
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(sum[i]));
    } else {
      ASSERT_EQ(sum[i], expected[i]) << i;
    }
  }
}

TEST_P(PackedIntTest, RowBytesAreWholeLinesAndAllWritten) {
  for (const int64_t k : {1, 31, 32, 64, 65, 100, 512, 2048}) {
    const int64_t bytes = kernels().row_bytes(k);
    EXPECT_EQ(bytes % 64, 0);
    std::vector<float> x(static_cast<size_t>(k), 0.5f);
    AlignedBytes a(bytes + 64);
    AlignedBytes b(bytes + 64);
    std::memset(b.data(), 0x3c, static_cast<size_t>(bytes));
    kernels().prepare(x.data(), k, a.data());
    kernels().prepare(x.data(), k, b.data());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<size_t>(bytes + 64)), 0) << k;
    EXPECT_EQ(a.data()[bytes], std::byte{0xa5});
  }
  EXPECT_LE(kernels().scratch_bytes, 1 << 20);
}

TEST(PackedKernelTableTest, TheFastestTierAtOrBelow) {
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kInt4}) {
    for (const Precision precision : {Precision::kExact, Precision::kFast}) {
      const auto tier = [&](const char* name, const CpuFeatures& features) {
        const PackedKernels* found = FindPackedKernels(format, precision, name, features);
        EXPECT_EQ(found->format, format);
        EXPECT_EQ(found->precision, precision);
        return std::string(found->tier);
      };
      EXPECT_EQ(tier("amx", {}), "scalar");
      EXPECT_EQ(tier("scalar", {.avx2 = true}), "scalar");
#if defined(__x86_64__)
      const CpuFeatures vnni = {.avx2 = true, .avx512 = true, .avx512_vnni = true};
      const CpuFeatures amx = {.avx2 = true, .avx512 = true, .avx512_vnni = true, .amx_int8 = true};
      EXPECT_EQ(tier("amx", {.avx2 = true, .avx512 = true}), "avx2");
      EXPECT_EQ(tier("avx512", vnni), "avx2");
      EXPECT_EQ(tier("avx512_vnni", amx), "avx512_vnni");
      EXPECT_EQ(tier("amx", vnni), "avx512_vnni");
      EXPECT_EQ(tier("amx", amx), "amx");
#endif
    }
  }
  EXPECT_EQ(FindPackedKernels(PoolFormat::kInt8, Precision::kFast, "sse9", {}), nullptr);
}

}  // namespace
}  // namespace banyan::expert
