// Every tier of the pool formats bf16 and nf4 against the oracle, nf4 against bf16 of the same
// weights, and the promise that a row's bits depend neither on other rows nor on how panels are
// cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/quant/packed_matrix.h"
#include "common/quant/reference.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "tests/fakes/same_bits.h"
#include "tests/kernels/expert/emulated_amx_bf16.h"
#include "tests/kernels/expert/packed_int_problem.h"
#include "tests/kernels/expert/packed_sums.h"

namespace banyan::expert {
namespace {

using test::SameBits;
using testing::AlignedBytes;
using testing::PackedProblem;
using testing::PackedShape;
using testing::PackedTestMatrix;
using testing::PanelCut;
using testing::RunAll;
using testing::RunPacked;
using testing::Zeros;

constexpr double kFloatRounding = 0x1p-24;

std::vector<const PackedKernels*> Cases() {
  std::vector<const PackedKernels*> out;
  for (const PackedKernels* kernels : AvailablePackedKernels(ReadCpuFeatures())) {
    if (kernels->format == PoolFormat::kBF16 || kernels->format == PoolFormat::kNF4) {
      out.push_back(kernels);
    }
  }
#if defined(__x86_64__)
  if (ReadCpuFeatures().avx512_bf16) {
    for (const PackedKernels& kernels : testing::kEmulatedAmxBF16) out.push_back(&kernels);
  }
#endif
  return out;
}

std::string NameOf(const PackedKernels& kernels) {
  return std::string(kernels.tier) + "_" + std::string(PoolFormatName(kernels.format)) +
         (kernels.precision == Precision::kExact ? "_exact" : "_fast");
}

// Values that a kernel holds in f32 or bf16: the true one, and how far off it may be.
struct Values {
  std::vector<double> value;
  std::vector<double> bound;
};

// What is left of a row after preparing it: one bf16 at kFast, two at kExact in tiers that multiply
// bf16, else all of it.
Values PreparedOf(const Values& x, const PackedKernels& kernels) {
  const std::string tier = kernels.tier;
  double loss = 0;
  if (kernels.precision == Precision::kFast) {
    loss = 0x1p-9;
  } else if (tier == "avx512_vnni" || tier.starts_with("amx")) {
    loss = 0x1p-18;
  }
  Values out = x;
  for (size_t i = 0; i < x.value.size() && loss > 0; ++i) {
    out.bound[i] += loss * (std::abs(x.value[i]) + x.bound[i]) + 0x1p-126;
  }
  return out;
}

// Additions and products that round, one after another, for a dot product of length k: no tier has
// fewer chains side by side than the scalar one, which has one.
double RoundingsOf(const PackedKernels& kernels, int64_t k) {
  const std::string tier = kernels.tier;
  // Tiles: a chain of 16 within a step, then one sum a step.
  if (tier.starts_with("amx")) return std::ceil(static_cast<double>(k) / 32) + 24;
  const double chains = tier == "avx512" || tier == "avx512_vnni" ? 16 : tier == "avx2" ? 8 : 1;
  return 2 * std::ceil(static_cast<double>(k) / chains) + 8;
}

Values DotsOf(const PackedKernels& kernels, const PackedTestMatrix& matrix, const Values& x) {
  const double roundings = RoundingsOf(kernels, matrix.k);
  Values out;
  for (int64_t o = 0; o < matrix.num_outputs; ++o) {
    const float* w = matrix.weights.data() + o * matrix.k;
    double value = 0;
    double bound = 0;
    double norm = 0;
    for (int64_t i = 0; i < matrix.k; ++i) {
      const auto at = static_cast<size_t>(i);
      const double magnitude = std::abs(static_cast<double>(w[i]));
      value += w[i] * x.value[at];
      bound += magnitude * x.bound[at];
      norm += magnitude * (std::abs(x.value[at]) + x.bound[at]);
    }
    out.value.push_back(value);
    out.bound.push_back(bound + roundings * kFloatRounding * norm + 1e-36);
  }
  return out;
}

// What the expert adds for pair i.
Values OracleOfPair(const PackedKernels& kernels, const PackedProblem& p, int32_t i) {
  const float* row = p.row(p.rows[static_cast<size_t>(i)]);
  Values x;
  x.value.assign(row, row + p.shape.hidden_size);
  x.bound.assign(x.value.size(), 0.0);
  const Values prepared = PreparedOf(x, kernels);
  const Values gate = DotsOf(kernels, p.gate_proj, prepared);
  const Values up = DotsOf(kernels, p.up_proj, prepared);
  Values hidden;
  for (size_t j = 0; j < gate.value.size(); ++j) {
    const double silu = ReferenceSilu(gate.value[j]);
    // |silu'| <= 1.1. The kernels' SiLU is within 4 units in the last place, the product rounds.
    const double silu_bound = 1.1 * gate.bound[j] + 8 * kFloatRounding * std::abs(silu);
    const double value = silu * up.value[j];
    const double bound =
        silu_bound * (std::abs(up.value[j]) + up.bound[j]) + std::abs(silu) * up.bound[j];
    hidden.value.push_back(value);
    hidden.bound.push_back(bound + kFloatRounding * (std::abs(value) + bound) + 1e-37);
  }
  Values out = DotsOf(kernels, p.down_proj, PreparedOf(hidden, kernels));
  const double weight = p.routing_weights[static_cast<size_t>(i)];
  for (size_t o = 0; o < out.value.size(); ++o) {
    out.value[o] *= weight;
    out.bound[o] = out.bound[o] * weight +
                   2 * kFloatRounding * (std::abs(out.value[o]) + out.bound[o] * weight);
  }
  return out;
}

class PackedBF16NF4Test : public ::testing::TestWithParam<const PackedKernels*> {
 protected:
  const PackedKernels& kernels() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Tiers, PackedBF16NF4Test, ::testing::ValuesIn(Cases()),
                         [](const auto& tested) { return NameOf(*tested.param); });

void ExpectOracle(const PackedKernels& kernels, const PackedProblem& p) {
  const std::vector<float> sum = RunAll(kernels, p);
  const auto hidden_size = static_cast<size_t>(p.shape.hidden_size);
  for (int32_t i = 0; i < p.shape.num_rows; ++i) {
    const Values oracle = OracleOfPair(kernels, p, i);
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

TEST_P(PackedBF16NF4Test, AwkwardShapesMatchOracle) {
  std::mt19937 random(1);
  int32_t num_rows = 0;
  for (const int32_t hidden_size : {64, 100, 128, 33, 1, 95}) {
    for (const int32_t width : {32, 64, 96, 192, 17, 80, 3}) {
      num_rows = num_rows % 19 + 1;
      const PackedShape shape{hidden_size, width, num_rows};
      SCOPED_TRACE(Describe(shape));
      const PackedProblem problem(kernels().format, shape, random);
      ASSERT_NO_FATAL_FAILURE(ExpectOracle(kernels(), problem));
    }
  }
}

TEST_P(PackedBF16NF4Test, EveryRowCountMatchesOracle) {
  std::mt19937 random(2);
  for (int32_t num_rows = 1; num_rows <= 70; ++num_rows) {
    const PackedShape shape{100, 48, num_rows};
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(kernels(), problem));
  }
}

TEST_P(PackedBF16NF4Test, RealSizesMatchOracle) {
  std::mt19937 random(3);
  for (const PackedShape& shape :
       {PackedShape{2048, 512, 1}, PackedShape{2048, 64, 9}, PackedShape{2048, 192, 3},
        PackedShape{128, 512, 12}, PackedShape{2048, 32, 17}, PackedShape{40, 5000, 53}}) {
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(kernels(), problem));
  }
}

TEST_P(PackedBF16NF4Test, RowsDoNotDependOnOtherRowsOrOnCuts) {
  std::mt19937 random(5);
  for (const PackedShape& shape : {PackedShape{128, 96, 70}, PackedShape{100, 192, 23},
                                   PackedShape{2048, 64, 17}, PackedShape{95, 50, 203}}) {
    SCOPED_TRACE(Describe(shape));
    const PackedProblem problem(kernels().format, shape, random);
    const std::vector<float> together = RunAll(kernels(), problem);
    for (const int32_t group : {1, 2, 3, 4, 5, 7, 8, 13, 16, 33}) {
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

TEST_P(PackedBF16NF4Test, AddsToTheSum) { testing::ExpectAddsToTheSum(kernels()); }

TEST_P(PackedBF16NF4Test, SetsTheSum) { testing::ExpectSetsTheSum(kernels()); }

TEST_P(PackedBF16NF4Test, ZeroWeightsGiveZero) {
  std::mt19937 random(7);
  const PackedProblem problem(kernels().format, {100, 64, 5}, random, /*zero_gate=*/true);
  for (const float value : RunAll(kernels(), problem)) ASSERT_EQ(value, 0.0f);
}

// A NaN makes its row NaN, an infinity makes it not finite; neither touches a bit of the others.
TEST_P(PackedBF16NF4Test, NonFiniteRowsStayAlone) {
  std::mt19937 random(9);
  for (const int32_t num_rows : {3, 21}) {
    PackedProblem problem(kernels().format, {100, 80, num_rows}, random);
    const std::vector<float> expected = RunAll(kernels(), problem);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
      for (const int32_t pair : {0, num_rows / 3, num_rows - 1}) {
        for (const int32_t column : {0, 63, 99}) {
          const auto row = static_cast<size_t>(problem.rows[static_cast<size_t>(pair)]);
          float& value = problem.x[row * 100 + static_cast<size_t>(column)];
          const float good = value;
          value = bad;
          const std::vector<float> sum = RunAll(kernels(), problem);
          value = good;
          for (size_t i = 0; i < sum.size(); ++i) {
            if (i / 100 == row) {
              ASSERT_FALSE(std::isfinite(sum[i])) << i;
              ASSERT_TRUE(std::isnan(sum[i]) || !std::isnan(bad)) << i;
            } else {
              ASSERT_EQ(std::memcmp(&sum[i], &expected[i], sizeof(float)), 0) << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(PackedBF16NF4Test, RowBytesAreWholeLinesAndAllWritten) {
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

// Decoding is exact: the same weights as bf16 give the same bits.
TEST(PackedNF4Test, IsBF16OfTheSameWeights) {
  for (const PackedKernels* kernels : Cases()) {
    if (kernels->format != PoolFormat::kNF4) continue;
    SCOPED_TRACE(NameOf(*kernels));
    const std::vector<const PackedKernels*> cases = Cases();
    const auto bf16 = std::find_if(cases.begin(), cases.end(), [&](const PackedKernels* other) {
      return other->format == PoolFormat::kBF16 && other->precision == kernels->precision &&
             std::string(other->tier) == kernels->tier;
    });
    ASSERT_NE(bf16, cases.end());
    std::mt19937 random(11);
    for (const PackedShape& shape : {PackedShape{2048, 64, 1}, PackedShape{128, 96, 4},
                                     PackedShape{256, 128, 11}, PackedShape{100, 80, 21}}) {
      SCOPED_TRACE(Describe(shape));
      PackedProblem problem(PoolFormat::kNF4, shape, random);
      const std::vector<float> expected = RunAll(*kernels, problem);
      for (PackedTestMatrix* matrix : {&problem.gate_proj, &problem.up_proj, &problem.down_proj}) {
        AlignedBytes packed(PackedMatrixBytes(PoolFormat::kBF16, matrix->num_outputs, matrix->k));
        PackMatrix(PoolFormat::kBF16,
                   {.data = matrix->weights.data(),
                    .num_outputs = matrix->num_outputs,
                    .k = matrix->k,
                    .row_stride = matrix->k},
                   packed.data());
        std::swap(matrix->packed, packed);
      }
      problem.expert = {problem.gate_proj.packed.data(), problem.up_proj.packed.data(),
                        problem.down_proj.packed.data()};
      ASSERT_TRUE(SameBits(RunAll(**bf16, problem), expected));
    }
  }
}

TEST(PackedNF4Test, EveryTierHasBothFormats) {
  for (const PoolFormat format : {PoolFormat::kBF16, PoolFormat::kNF4}) {
    const auto tier = [&](Precision precision, const char* name, const CpuFeatures& features) {
      const PackedKernels* found = FindPackedKernels(format, precision, name, features);
      EXPECT_EQ(found->format, format);
      EXPECT_EQ(found->precision, precision);
      return std::string(found->tier);
    };
    for (const Precision precision : {Precision::kExact, Precision::kFast}) {
      EXPECT_EQ(tier(precision, "amx", {}), "scalar");
#if defined(__x86_64__)
      EXPECT_EQ(tier(precision, "amx", {.avx2 = true}), "avx2");
      EXPECT_EQ(tier(precision, "amx", {.avx2 = true, .avx512 = true, .avx512_vnni = true}),
                "avx512");
#endif
    }
#if defined(__x86_64__)
    const CpuFeatures bf16 = {
        .avx2 = true, .avx512 = true, .avx512_vnni = true, .avx512_bf16 = true};
    EXPECT_EQ(tier(Precision::kFast, "avx512_vnni", bf16), "avx512_vnni");
    EXPECT_EQ(tier(Precision::kFast, "avx512", bf16), "avx512");
    EXPECT_EQ(tier(Precision::kExact, "amx", bf16), "avx512_vnni");
    CpuFeatures tiles = bf16;
    tiles.amx_bf16 = true;
    EXPECT_EQ(tier(Precision::kExact, "amx", tiles), "amx");
    EXPECT_EQ(tier(Precision::kFast, "amx", tiles), "amx");
    EXPECT_EQ(tier(Precision::kExact, "avx512_vnni", tiles), "avx512_vnni");
#endif
  }
}

}  // namespace
}  // namespace banyan::expert
