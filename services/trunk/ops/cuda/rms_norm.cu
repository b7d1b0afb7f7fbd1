#include "services/trunk/ops/cuda/rms_norm.h"

#include "services/trunk/ops/cuda/device.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(int32_t n, float eps, const float* weight, const float* addend, float* x,
                  float* out) {
  __shared__ float scratch[kThreads / kWarp];
  const int64_t base = int64_t{blockIdx.x} * n;
  float squares = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) {
    float value = x[base + i];
    if (addend != nullptr) {
      value += addend[base + i];
      x[base + i] = value;
    }
    squares = fmaf(value, value, squares);
  }
  const float sum = CtaSum<kThreads>(squares, scratch);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) {
    out[base + i] = x[base + i] * scale * (1.0f + weight[i]);
  }
}

}  // namespace

cudaError_t RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight, const float* addend,
                    float* x, float* out, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  RmsNormKernel<<<static_cast<unsigned>(num_rows), kThreads, 0, stream>>>(n, eps, weight, addend, x,
                                                                          out);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
