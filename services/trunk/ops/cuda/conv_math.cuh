// What two kernels compute of a convolution with the same bits. Device code only.
#pragma once

#include "services/trunk/ops/cuda/device.cuh"

namespace banyan::trunk::cuda {

inline constexpr float kL2NormEps = 1e-6f;  // added to the sum of squares

__device__ __forceinline__ float ConvNorm(float squares, float scale) {
  return 1.0f / sqrtf(squares + kL2NormEps) * scale;
}

__device__ __forceinline__ float Softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

__device__ __forceinline__ float LogDecay(float neg_decay_rate, float a, float dt_bias) {
  return neg_decay_rate * Softplus(a + dt_bias);
}

}  // namespace banyan::trunk::cuda
