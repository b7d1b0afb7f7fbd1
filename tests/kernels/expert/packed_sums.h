// What the sums of every packed kernel must be like, whatever its format and tier.
#pragma once

#include <vector>

#include "tests/kernels/expert/packed_int_problem.h"

namespace banyan::expert::testing {

// [2 * num_rows][hidden_size] of a problem.
std::vector<float> Zeros(const PackedProblem& problem);
// All of its pairs, uncut.
std::vector<float> RunAll(const PackedKernels& kernels, const PackedProblem& problem);

// A second run adds the same once more.
void ExpectAddsToTheSum(const PackedKernels& kernels);
// Without `add` what the sums were does not matter, and only those of the expert's rows are set.
void ExpectSetsTheSum(const PackedKernels& kernels);

}  // namespace banyan::expert::testing
