// Operations without sums: embedding, Swiglu, the joins of the residual stream, gathers. Contracts:
// ops.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

// Rows [first, first + rows) of a table, [rows, n] of bf16 or f32.
struct EmbeddingTable {
  const void* data = nullptr;
  bool bf16 = false;
  int32_t first = 0;
  int32_t rows = 0;
  int32_t n = 0;
};
// out [num_rows, n] = rows of the table, zero for ids that it does not have.
cudaError_t Embed(const EmbeddingTable& table, const int32_t* token_ids, int32_t num_rows,
                  float* out, cudaStream_t stream);

// out [count] = parts[0] + parts[1] + ..., in this order; parts [num_parts, count].
cudaError_t SumParts(const float* parts, int32_t num_parts, int64_t count, float* out,
                     cudaStream_t stream);

cudaError_t Swiglu(int64_t count, const float* gate, const float* up, float* out,
                   cudaStream_t stream);

cudaError_t MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                       const float* gate_logit, float* hidden, cudaStream_t stream);

// out [count] = x in bf16, to nearest, ties to even; every NaN becomes 0x7fc0, as in
// common/quant/bf16.h.
cudaError_t RoundToBf16(int64_t count, const float* x, uint16_t* out, cudaStream_t stream);

cudaError_t AddRows(int64_t count, const float* addend, float* hidden, cudaStream_t stream);

// out [num_rows, n] = rows of x; `rows` is a host array.
cudaError_t GatherRows(const int32_t* rows, int32_t num_rows, int32_t n, const float* x, float* out,
                       cudaStream_t stream);

}  // namespace banyan::trunk::cuda
