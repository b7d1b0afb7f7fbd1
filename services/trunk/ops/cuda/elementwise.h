// Operations without sums: embedding, Swiglu, the joins of the residual stream, gathers. Contracts:
// ops.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

// out [num_rows, n] = rows of the table; `bf16` or f32.
cudaError_t Embed(const void* table, bool bf16, int32_t n, const int32_t* token_ids,
                  int32_t num_rows, float* out, cudaStream_t stream);

cudaError_t Swiglu(int64_t count, const float* gate, const float* up, float* out,
                   cudaStream_t stream);

cudaError_t MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                       const float* gate_logit, float* hidden, cudaStream_t stream);

cudaError_t AddRows(int64_t count, const float* addend, float* hidden, cudaStream_t stream);

// out [num_rows, n] = rows of x; `rows` is a host array.
cudaError_t GatherRows(const int32_t* rows, int32_t num_rows, int32_t n, const float* x, float* out,
                       cudaStream_t stream);

}  // namespace banyan::trunk::cuda
