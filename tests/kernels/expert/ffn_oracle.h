// The expert FFN in double from weights as the checkpoint holds them, with a bound on what a kernel
// tier may differ by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "common/quant/reference.h"
#include "services/expert/kernels/expert_ffn.h"

namespace banyan::expert::testing {

struct OracleExpert {
  ReferenceMatrix gate_proj;  // [width, hidden_size]
  ReferenceMatrix up_proj;    // [width, hidden_size]
  ReferenceMatrix down_proj;  // [hidden_size, width]
};

OracleExpert OracleOf(const ExpertWeights& weights, int64_t hidden_size, int64_t width);

struct OracleValues {
  std::vector<double> value;
  std::vector<double> bound;  // of |f32 result - value|, rigorous to first order
};

// silu(gate x) * (up x) and its bound for the tier's arithmetic.
OracleValues OracleHidden(const OracleExpert& expert, const std::vector<double>& x,
                          const FfnKernels& kernels);

// down(hidden); the bound carries that of `hidden` on.
OracleValues OracleDown(const OracleExpert& expert, const OracleValues& hidden,
                        const FfnKernels& kernels);

// sum over experts of weight * value, in f32 by one rounding per product and per sum.
OracleValues OracleWeightedSum(const std::vector<OracleValues>& values,
                               const std::vector<float>& weights);

// Random weights of one expert in memory of its own. Each matrix starts at an odd byte address,
// has `row_padding` more columns than are used, which hold NaN, and ends one byte before a page
// that cannot be read.
class RandomExpert {
 public:
  RandomExpert(int64_t hidden_size, int64_t width, WeightType type, int64_t row_padding,
               std::mt19937& random);
  ~RandomExpert();
  RandomExpert(const RandomExpert&) = delete;
  RandomExpert& operator=(const RandomExpert&) = delete;
  const ExpertWeights& weights() const { return weights_; }

 private:
  struct Mapping {
    void* base;
    size_t bytes;
  };
  WeightMatrix MakeMatrix(int64_t rows, int64_t cols, WeightType type, int64_t row_padding,
                          std::mt19937& random);
  std::vector<Mapping> mappings_;
  ExpertWeights weights_;
};

}  // namespace banyan::expert::testing
