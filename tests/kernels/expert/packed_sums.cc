#include "tests/kernels/expert/packed_sums.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/fakes/same_bits.h"

namespace banyan::expert::testing {

std::vector<float> Zeros(const PackedProblem& p) {
  return std::vector<float>(static_cast<size_t>(2 * p.shape.num_rows * p.shape.hidden_size));
}

std::vector<float> RunAll(const PackedKernels& kernels, const PackedProblem& p) {
  std::vector<float> sum = Zeros(p);
  RunPacked(kernels, p, 0, p.shape.num_rows, {}, &sum);
  return sum;
}

void ExpectAddsToTheSum(const PackedKernels& kernels) {
  std::mt19937 random(6);
  const PackedProblem problem(kernels.format, {100, 64, 3}, random);
  const std::vector<float> once = RunAll(kernels, problem);
  std::vector<float> twice = once;
  RunPacked(kernels, problem, 0, 3, {}, &twice);
  for (size_t i = 0; i < once.size(); ++i) ASSERT_EQ(twice[i], once[i] + once[i]);
}

void ExpectSetsTheSum(const PackedKernels& kernels) {
  std::mt19937 random(12);
  for (const int32_t num_rows : {1, 3, 21, 70}) {
    const PackedProblem problem(kernels.format, {100, 64, num_rows}, random);
    std::vector<float> sum(Zeros(problem).size(), std::numeric_limits<float>::quiet_NaN());
    RunPacked(kernels, problem, 0, num_rows, {4, 3}, &sum, /*add=*/false);
    for (size_t i = 0; i < sum.size(); ++i) {
      if (i / 100 % 2 == 0) continue;
      ASSERT_TRUE(std::isnan(sum[i])) << i;
      sum[i] = 0;
    }
    ASSERT_TRUE(test::SameBits(sum, RunAll(kernels, problem))) << num_rows;
  }
}

}  // namespace banyan::expert::testing
