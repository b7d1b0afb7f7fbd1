// Codes and scales of a matrix as ops/int8_rows.h has them, bit for bit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

// num_rows rows of `cols` values, bf16 or f32, to codes [num_rows, cols], each where CodePlace
// says, and scales [num_rows, groups].
cudaError_t QuantizeInt8Rows(const void* values, bool bf16, int64_t num_rows, int32_t cols,
                             int8_t* codes, float* scales, cudaStream_t stream);

// Codes [num_rows, cols] that lie column after column, eight bytes aligned, to where CodePlace
// says.
cudaError_t PairCodes(int8_t* codes, int64_t num_rows, int32_t cols, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
