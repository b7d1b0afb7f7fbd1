// x += addend unless that is null; out = x * rsqrt(mean(x^2) + eps) * (1 + weight), one CTA a row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

cudaError_t RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                    const float* addend, float* x, float* out, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
