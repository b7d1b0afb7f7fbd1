// y[r, n] = sum over k of x[r, k] * w[n, k] for up to eight matrices over the same rows.
//
// bf16 matrices of a multiple of 32 columns go through the tensor cores: x is split in three bf16,
// which loses less than f32's own rounding, products with w are exact and summed in f32. Two would
// be faster where many rows are at hand, and missed the golden router weights of tiny by a fifth.
// The columns are cut in sixteen partitions, each summed in one order and then joined in order,
// whether a partition is a warp of its own (few rows) or a stretch of a longer loop (many): so a
// row's bits depend neither on the rows beside it nor on their number. Error: the rounding of the
// sums. Other matrices are computed in plain f32, one warp per output.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int kMaxMatrices = 8;

struct LinearMatrix {
  const float* x = nullptr;  // [num_rows, k], 16-byte aligned
  const void* w = nullptr;   // [n, k], bf16 or f32, 16-byte aligned
  float* y = nullptr;        // [num_rows, n]
  int32_t n = 0;
  int32_t k = 0;
  bool bf16 = false;
};

// Never takes part in a row's bits: only in how work is cut.
struct LinearTuning {
  int32_t num_sms = 132;
};

cudaError_t Linear(const LinearMatrix* matrices, int num_matrices, int32_t num_rows,
                   const LinearTuning& tuning, cudaStream_t stream);

// Raises the limits on shared memory that the kernels need; once per device, before the first
// launch. cudaErrorNoKernelImageForDevice, cudaErrorInvalidValue: the device is not one we support.
cudaError_t PrepareLinear();

}  // namespace banyan::trunk::cuda
