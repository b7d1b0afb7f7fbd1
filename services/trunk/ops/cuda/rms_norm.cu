#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/handover.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/prefetch.cuh"
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

// Not before the rows have gone to the host: they would queue behind it. And no longer than until
// the answer is there: the next kernel waits for this one's last CTA. A warp.
__device__ __forceinline__ void PrefetchBesideAnswer(const Prefetch& prefetch, int cta,
                                                     const CombineLaunch& combine) {
  if (combine.state == nullptr) {
    AwaitOthers();
    return PrefetchShare(prefetch, cta, [] { return false; });
  }
  const HandoverCounts wanted = CountsOf(combine.turn);
  while (!IsAsked(combine.state, wanted.to_host)) __nanosleep(20);
  PrefetchShare(prefetch, cta, [&] { return AreReleased(combine.state, wanted.to_device); });
}

// kCombine: the experts' answer is what is added, and the shared expert's beside it.
template <bool kCombine>
__global__ void __launch_bounds__(kThreads)
    RmsNormVectorKernel(int32_t num_rows, int32_t n, float eps, const float4* weight,
                        const float4* addend, float4* x, float4* out,
                        const __grid_constant__ CombineLaunch combine,
                        const __grid_constant__ Prefetch prefetch) {
  LetNextStart();
  const int row = static_cast<int>(blockIdx.x);
  if (kCombine && row >= num_rows) {
    if (threadIdx.x < kWarp) PrefetchBesideAnswer(prefetch, row - num_rows, combine);
    return;
  }
  __shared__ float scratch[kThreads / kWarp];
  const int pieces = n / 4;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t base = int64_t{row} * pieces;
  float4 weights[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + thread;
    if (at < pieces) weights[i] = LoadEarly(weight + at);
  }
  float4 routed[kPerThread];
  const auto take_routed = [&] {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = i * kThreads + thread;
      if (at < pieces) routed[i] = __ldcv(combine.routed + base + at);
    }
  };
  // Before the wait: the answer's way is the longest.
  if (kCombine && combine.state != nullptr) {
    AwaitRelease(combine.turn, combine.state, combine.flags);
    take_routed();
  }
  AwaitOthers();
  if (kCombine && combine.state == nullptr) take_routed();
  float4 values[kPerThread];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + thread;
    if (at < pieces) values[i] = x[base + at];
  }
  if constexpr (kCombine) {
    float4 shared[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = i * kThreads + thread;
      if (at < pieces) shared[i] = combine.shared[base + at];
    }
    const float gate = Sigmoid(combine.gate_logit[row]);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = i * kThreads + thread;
      if (at >= pieces) continue;
      values[i].x += fmaf(gate, shared[i].x, routed[i].x);
      values[i].y += fmaf(gate, shared[i].y, routed[i].y);
      values[i].z += fmaf(gate, shared[i].z, routed[i].z);
      values[i].w += fmaf(gate, shared[i].w, routed[i].w);
      x[base + at] = values[i];
    }
  } else if (addend != nullptr) {
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

bool FitsRegisters(int32_t n) { return n % 4 == 0 && n <= kPerThread * kThreads * 4; }

unsigned Ctas(int32_t num_rows, const Prefetch& prefetch) {
  return static_cast<unsigned>(num_rows + (prefetch.num_ranges > 0 ? kPrefetchCtas : 0));
}

}  // namespace

bool TakesCombine(int32_t n) { return FitsRegisters(n); }

cudaError_t CombineNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                        const CombineLaunch& combine, float* x, float* out,
                        const Prefetch& prefetch, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  Launch(RmsNormVectorKernel<true>, Ctas(num_rows, prefetch), kThreads, 0, stream, num_rows, n, eps,
         reinterpret_cast<const float4*>(weight), static_cast<const float4*>(nullptr),
         reinterpret_cast<float4*>(x), reinterpret_cast<float4*>(out), combine, prefetch);
  return cudaPeekAtLastError();
}

cudaError_t RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                    const float* addend, float* x, float* out, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  if (FitsRegisters(n)) {
    Launch(RmsNormVectorKernel<false>, static_cast<unsigned>(num_rows), kThreads, 0, stream,
           num_rows, n, eps, reinterpret_cast<const float4*>(weight),
           reinterpret_cast<const float4*>(addend), reinterpret_cast<float4*>(x),
           reinterpret_cast<float4*>(out), CombineLaunch(), Prefetch());
    return cudaPeekAtLastError();
  }
  Launch(RmsNormKernel, static_cast<unsigned>(num_rows), kThreads, 0, stream, n, eps, weight,
         addend, x, out);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
