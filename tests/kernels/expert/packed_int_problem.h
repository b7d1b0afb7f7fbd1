// Random experts in an integer pool format, kernels run over them, and the oracle in double with
// bounds computed from norms. For tests of the packed integer kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "services/expert/kernels/packed_ffn.h"

namespace banyan::expert::testing {

// 64-byte aligned bytes, all 0xa5 when made: nothing may depend on them.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t bytes);
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

struct PackedShape {
  int32_t hidden_size;
  int32_t width;
  int32_t num_rows;
};

// A matrix [num_outputs, k] in a pool format, and its exact weights.
struct PackedTestMatrix {
  // zero: every weight 0.
  PackedTestMatrix(PoolFormat format, int64_t num_outputs, int64_t k, bool zero,
                   std::mt19937& random);
  int64_t num_outputs;
  int64_t k;
  AlignedBytes packed;
  std::vector<float> weights;  // [num_outputs][k]
};

// One expert, and 2 * num_rows activations of which it gets rows 0, 2, 4, ... in reverse order.
// Every other row it gets stands on the grid of 8-bit activations, where preparing is exact.
struct PackedProblem {
  PackedProblem(PoolFormat format, const PackedShape& shape, std::mt19937& random,
                bool zero_gate = false);
  const float* row(int64_t i) const { return x.data() + i * shape.hidden_size; }
  PackedShape shape;
  PackedTestMatrix gate_proj;
  PackedTestMatrix up_proj;
  PackedTestMatrix down_proj;
  PackedExpert expert;
  std::vector<float> x;  // [2 * num_rows][hidden_size]
  std::vector<int32_t> rows;
  std::vector<float> routing_weights;
};

// Panels of gate and up and of down in a call; the former a multiple of kGateUpPanels.
struct PanelCut {
  int32_t gate_up = 1 << 20;
  int32_t down = 1 << 20;
};

// Adds pairs [first, first + n) to `sum` [2 * num_rows][hidden_size], or sets the rows of these.
void RunPacked(const PackedKernels& kernels, const PackedProblem& problem, int32_t first, int32_t n,
               const PanelCut& cut, std::vector<float>* sum, bool add = true);

struct PackedOracle {
  std::vector<double> value;  // [hidden_size]
  std::vector<double> bound;  // of |kernel - value|
};

// What the expert adds for pair i.
PackedOracle OracleOfPair(const PackedProblem& problem, Precision precision, int32_t i);

}  // namespace banyan::expert::testing
