// Every tier against the oracle, and the promise that a row's bits depend on the tier alone.
#include "services/expert/kernels/expert_ffn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "services/expert/kernels/kernel_table.h"
#include "tests/kernels/expert/ffn_oracle.h"

namespace banyan::expert {
namespace {

using testing::OracleDown;
using testing::OracleExpert;
using testing::OracleHidden;
using testing::OracleOf;
using testing::OracleValues;
using testing::OracleWeightedSum;
using testing::RandomExpert;

// Vectors as kernels want them: 64-byte aligned rows, zero behind the values.
class Rows {
 public:
  Rows(int64_t num_rows, int64_t size)
      : stride_(PaddedFloats(size)),
        data_(static_cast<float*>(
            std::aligned_alloc(64, static_cast<size_t>(num_rows * stride_) * sizeof(float)))),
        size_(num_rows * stride_) {
    std::fill(data_.get(), data_.get() + size_, 0.0f);
  }
  float* row(int64_t i) { return data_.get() + i * stride_; }
  const float* row(int64_t i) const { return data_.get() + i * stride_; }
  float* data() { return data_.get(); }
  int64_t stride() const { return stride_; }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  int64_t stride_;
  std::unique_ptr<float, Free> data_;
  int64_t size_;
};

struct Shape {
  int32_t hidden_size;
  int32_t width;
  int32_t num_rows;
};

// Random activations, of which the expert gets rows 0, 2, 4, ...
struct Problem {
  Problem(const Shape& s, WeightType type, std::mt19937& random)
      : shape(s),
        expert(s.hidden_size, s.width, type, /*row_padding=*/3, random),
        x(2 * s.num_rows, s.hidden_size) {
    std::normal_distribution<float> normal;
    for (int32_t i = 0; i < 2 * s.num_rows; ++i) {
      for (int32_t c = 0; c < s.hidden_size; ++c) x.row(i)[c] = normal(random);
    }
    for (int32_t i = 0; i < s.num_rows; ++i) {
      rows.push_back(2 * i);
      routing_weights.push_back(std::abs(normal(random)));
    }
  }

  Shape shape;
  RandomExpert expert;
  Rows x;
  std::vector<int32_t> rows;
  std::vector<float> routing_weights;
};

struct Result {
  Result(const Problem& p)
      : hidden(p.shape.num_rows, p.shape.width), sum(2 * p.shape.num_rows, p.shape.hidden_size) {}
  Rows hidden;
  Rows sum;
};

// Pairs [first, first + n), outputs cut at multiples of `tile`.
void RunPairs(const FfnKernels& kernels, Problem& p, int32_t first, int32_t n, int32_t tile,
              Result& result, bool add = true) {
  for (int32_t o = 0; o < p.shape.width; o += tile) {
    kernels.gate_up({.weights = &p.expert.weights(),
                     .hidden_size = p.shape.hidden_size,
                     .first_output = o,
                     .end_output = std::min(o + tile, p.shape.width),
                     .num_rows = n,
                     .rows = p.rows.data() + first,
                     .x = p.x.data(),
                     .x_stride = p.x.stride(),
                     .hidden = result.hidden.row(first),
                     .hidden_stride = result.hidden.stride()});
  }
  for (int32_t o = 0; o < p.shape.hidden_size; o += tile) {
    kernels.down({.weights = &p.expert.weights(),
                  .width = p.shape.width,
                  .first_output = o,
                  .end_output = std::min(o + tile, p.shape.hidden_size),
                  .num_rows = n,
                  .rows = p.rows.data() + first,
                  .routing_weights = p.routing_weights.data() + first,
                  .hidden = result.hidden.row(first),
                  .hidden_stride = result.hidden.stride(),
                  .sum = result.sum.data(),
                  .sum_stride = result.sum.stride(),
                  .add = add});
  }
}

std::string Describe(const FfnKernels& kernels, const Shape& s, WeightType type) {
  return std::string(kernels.name) + (type == WeightType::kBF16 ? " bf16" : " f32") +
         " hidden_size " + std::to_string(s.hidden_size) + " width " + std::to_string(s.width) +
         " rows " + std::to_string(s.num_rows);
}

void ExpectOracle(const FfnKernels& kernels, Problem& p) {
  Result result(p);
  RunPairs(kernels, p, 0, p.shape.num_rows, 1 << 20, result);
  const OracleExpert oracle = OracleOf(p.expert.weights(), p.shape.hidden_size, p.shape.width);
  for (int32_t i = 0; i < p.shape.num_rows; ++i) {
    const float* x = p.x.row(p.rows[static_cast<size_t>(i)]);
    const OracleValues hidden =
        OracleHidden(oracle, std::vector<double>(x, x + p.shape.hidden_size), kernels);
    for (int32_t o = 0; o < p.shape.width; ++o) {
      const auto j = static_cast<size_t>(o);
      ASSERT_NEAR(result.hidden.row(i)[o], hidden.value[j], hidden.bound[j])
          << "hidden of row " << i << " output " << o;
    }
    const OracleValues sum = OracleWeightedSum({OracleDown(oracle, hidden, kernels)},
                                               {p.routing_weights[static_cast<size_t>(i)]});
    for (int32_t o = 0; o < p.shape.hidden_size; ++o) {
      const auto j = static_cast<size_t>(o);
      ASSERT_NEAR(result.sum.row(2 * i)[o], sum.value[j], sum.bound[j])
          << "sum of row " << i << " output " << o;
      ASSERT_EQ(result.sum.row(2 * i + 1)[o], 0.0f) << "a row that the expert did not get";
    }
  }
}

bool SameBits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}

struct Case {
  const FfnKernels* kernels;
  WeightType type;
};

std::vector<Case> Cases() {
  std::vector<Case> out;
  for (const FfnKernels* kernels : AvailableKernels(ReadCpuFeatures())) {
    out.push_back({kernels, WeightType::kBF16});
    out.push_back({kernels, WeightType::kF32});
  }
  return out;
}

class ExpertFfnTest : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Tiers, ExpertFfnTest, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<Case>& tested) {
                           return std::string(tested.param.kernels->name) +
                                  (tested.param.type == WeightType::kBF16 ? "_bf16" : "_f32");
                         });

constexpr int32_t kWidths[] = {1, 3, 8, 21, 22, 64};

// Every hidden size from 1 to 70 with every width, row counts going round.
TEST_P(ExpertFfnTest, AwkwardSizesMatchOracle) {
  std::mt19937 random(1);
  int32_t num_rows = 0;
  for (int32_t hidden_size = 1; hidden_size <= 70; ++hidden_size) {
    for (const int32_t width : kWidths) {
      num_rows = num_rows % 19 + 1;
      const Shape shape{hidden_size, width, num_rows};
      SCOPED_TRACE(Describe(*GetParam().kernels, shape, GetParam().type));
      Problem problem(shape, GetParam().type, random);
      ASSERT_NO_FATAL_FAILURE(ExpectOracle(*GetParam().kernels, problem));
    }
  }
}

TEST_P(ExpertFfnTest, EveryRowCountMatchesOracle) {
  std::mt19937 random(2);
  for (int32_t num_rows = 1; num_rows <= 70; ++num_rows) {
    const Shape shape{67, 22, num_rows};
    SCOPED_TRACE(Describe(*GetParam().kernels, shape, GetParam().type));
    Problem problem(shape, GetParam().type, random);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(*GetParam().kernels, problem));
  }
}

TEST_P(ExpertFfnTest, RealSizesMatchOracle) {
  std::mt19937 random(3);
  for (const Shape& shape : {Shape{2048, 512, 1}, Shape{2048, 64, 5}, Shape{2048, 21, 9},
                             Shape{128, 512, 12}, Shape{128, 64, 70}}) {
    SCOPED_TRACE(Describe(*GetParam().kernels, shape, GetParam().type));
    Problem problem(shape, GetParam().type, random);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(*GetParam().kernels, problem));
  }
}

// Alone or beside others, in one call or several: the same bits.
TEST_P(ExpertFfnTest, RowsDoNotDependOnOtherRowsOrOnCuts) {
  std::mt19937 random(4);
  const FfnKernels& kernels = *GetParam().kernels;
  for (const Shape& shape :
       {Shape{128, 22, 70}, Shape{61, 64, 23}, Shape{2048, 24, 17}, Shape{70, 3, 8}}) {
    SCOPED_TRACE(Describe(kernels, shape, GetParam().type));
    Problem problem(shape, GetParam().type, random);
    Result together(problem);
    RunPairs(kernels, problem, 0, shape.num_rows, 1 << 20, together);
    for (const int32_t group : {1, 2, 3, 5, 8, 13}) {
      for (const int32_t tile : {1, 7, 8, 24, 1 << 20}) {
        if (tile == 1 && group != 3) continue;
        Result apart(problem);
        for (int32_t i = 0; i < shape.num_rows; i += group) {
          RunPairs(kernels, problem, i, std::min(group, shape.num_rows - i), tile, apart);
        }
        for (int32_t i = 0; i < shape.num_rows; ++i) {
          ASSERT_TRUE(SameBits(together.hidden.row(i), apart.hidden.row(i), shape.width))
              << "row " << i << " in groups of " << group << ", tiles of " << tile;
          ASSERT_TRUE(SameBits(together.sum.row(2 * i), apart.sum.row(2 * i), shape.hidden_size))
              << "row " << i << " in groups of " << group << ", tiles of " << tile;
        }
      }
    }
  }
}

// Without `add` what the sums were does not matter, and only those of the expert's rows are set.
TEST_P(ExpertFfnTest, SetsTheSum) {
  std::mt19937 random(7);
  const FfnKernels& kernels = *GetParam().kernels;
  const Shape shape{61, 22, 23};
  Problem problem(shape, GetParam().type, random);
  Result added(problem);
  RunPairs(kernels, problem, 0, shape.num_rows, 1 << 20, added);
  Result set(problem);
  std::fill(set.sum.row(0), set.sum.row(2 * shape.num_rows),
            std::numeric_limits<float>::quiet_NaN());
  RunPairs(kernels, problem, 0, shape.num_rows, 8, set, /*add=*/false);
  for (int32_t i = 0; i < shape.num_rows; ++i) {
    EXPECT_TRUE(SameBits(added.sum.row(2 * i), set.sum.row(2 * i), shape.hidden_size)) << i;
    EXPECT_TRUE(std::isnan(set.sum.row(2 * i + 1)[0])) << i;
  }
}

// Gate, up and down may have different types.
TEST_P(ExpertFfnTest, MixedWeightTypes) {
  std::mt19937 random(5);
  const FfnKernels& kernels = *GetParam().kernels;
  const Shape shape{37, 19, 6};
  Problem problem(shape, GetParam().type, random);
  const WeightType other =
      GetParam().type == WeightType::kBF16 ? WeightType::kF32 : WeightType::kBF16;
  RandomExpert second(shape.hidden_size, shape.width, other, 0, random);
  ExpertWeights mixed = problem.expert.weights();
  mixed.up_proj = second.weights().up_proj;
  Rows hidden(shape.num_rows, shape.width);
  kernels.gate_up({.weights = &mixed,
                   .hidden_size = shape.hidden_size,
                   .first_output = 0,
                   .end_output = shape.width,
                   .num_rows = shape.num_rows,
                   .rows = problem.rows.data(),
                   .x = problem.x.data(),
                   .x_stride = problem.x.stride(),
                   .hidden = hidden.data(),
                   .hidden_stride = hidden.stride()});
  const OracleExpert oracle = OracleOf(mixed, shape.hidden_size, shape.width);
  for (int32_t i = 0; i < shape.num_rows; ++i) {
    const float* x = problem.x.row(2 * i);
    const OracleValues expected =
        OracleHidden(oracle, std::vector<double>(x, x + shape.hidden_size), kernels);
    for (int32_t o = 0; o < shape.width; ++o) {
      const auto j = static_cast<size_t>(o);
      ASSERT_NEAR(hidden.row(i)[o], expected.value[j], expected.bound[j]);
    }
  }
}

// A row that overflows or holds NaN spoils no other row.
TEST_P(ExpertFfnTest, NonFiniteRowStaysAlone) {
  std::mt19937 random(6);
  const FfnKernels& kernels = *GetParam().kernels;
  const Shape shape{33, 10, 5};
  Problem problem(shape, GetParam().type, random);
  Result clean(problem);
  RunPairs(kernels, problem, 0, shape.num_rows, 1 << 20, clean);
  problem.x.row(2)[7] = std::numeric_limits<float>::quiet_NaN();
  problem.x.row(6)[0] = std::numeric_limits<float>::infinity();
  Result spoiled(problem);
  RunPairs(kernels, problem, 0, shape.num_rows, 1 << 20, spoiled);
  EXPECT_TRUE(std::isnan(spoiled.sum.row(2)[0]));
  EXPECT_FALSE(std::isfinite(spoiled.sum.row(6)[0]));
  for (const int32_t row : {0, 4, 8}) {
    EXPECT_TRUE(SameBits(clean.sum.row(row), spoiled.sum.row(row), shape.hidden_size)) << row;
  }
}

}  // namespace
}  // namespace banyan::expert
