#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/rms_norm.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(int32_t n, float eps, const float* weight, const float* addend, float* x,
                  float* out) {
  BeginKernel();
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

// The same for rows of whole float4, kept in registers between the two passes.
constexpr int kPerThread = 4;  // float4

__global__ void __launch_bounds__(kThreads)
    RmsNormVectorKernel(int32_t n, float eps, const float4* weight, const float4* addend, float4* x,
                        float4* out) {
  LetNextStart();
  __shared__ float scratch[kThreads / kWarp];
  const int pieces = n / 4;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t base = int64_t{blockIdx.x} * pieces;
  float4 weights[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + thread;
    if (at < pieces) weights[i] = weight[at];
  }
  AwaitOthers();
  float4 values[kPerThread];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + thread;
    if (at < pieces) values[i] = x[base + at];
  }
  if (addend != nullptr) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = i * kThreads + thread;
      if (at >= pieces) continue;
      const float4 more = addend[base + at];
      values[i].x += more.x;
      values[i].y += more.y;
      values[i].z += more.z;
      values[i].w += more.w;
      x[base + at] = values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i * kThreads + thread >= pieces) continue;
    squares = fmaf(values[i].x, values[i].x, squares);
    squares = fmaf(values[i].y, values[i].y, squares);
    squares = fmaf(values[i].z, values[i].z, squares);
    squares = fmaf(values[i].w, values[i].w, squares);
  }
  const float sum = CtaSum<kThreads>(squares, scratch);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + thread;
    if (at >= pieces) continue;
    const float4 v = values[i];
    const float4 w = weights[i];
    out[base + at] = {v.x * scale * (1.0f + w.x), v.y * scale * (1.0f + w.y),
                      v.z * scale * (1.0f + w.z), v.w * scale * (1.0f + w.w)};
  }
}

}  // namespace

cudaError_t RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                    const float* addend, float* x, float* out, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  if (n % 4 == 0 && n <= kPerThread * kThreads * 4) {
    Launch(RmsNormVectorKernel, static_cast<unsigned>(num_rows), kThreads, 0, stream, n, eps,
           reinterpret_cast<const float4*>(weight), reinterpret_cast<const float4*>(addend),
           reinterpret_cast<float4*>(x), reinterpret_cast<float4*>(out));
    return cudaPeekAtLastError();
  }
  Launch(RmsNormKernel, static_cast<unsigned>(num_rows), kThreads, 0, stream, n, eps, weight,
         addend, x, out);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
