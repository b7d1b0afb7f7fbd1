// What device code shares: the tensor-core product, splitting f32 in two bf16, sums over a warp or
// a CTA. Device code only. Compiled with -fmad=false: products and sums are fused where fmaf says
// so, so that two kernels that must agree bit for bit do.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// x as the sum of two bf16, within 2^-17 |x|: two values packed, the first in the low half.
struct Split2 {
  uint32_t hi;
  uint32_t lo;
};

__device__ __forceinline__ uint32_t PackBf16(float a, float b) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(b), "f"(a));
  return packed;
}

// The same, but every NaN as common/quant/bf16.h has it: what leaves the device.
__device__ __forceinline__ uint32_t RoundToBf16(float a, float b) {
  uint32_t packed = PackBf16(a, b);
  if (a != a) packed = (packed & 0xffff0000u) | 0x7fc0u;
  if (b != b) packed = (packed & 0xffffu) | 0x7fc00000u;
  return packed;
}

__device__ __forceinline__ Split2 Split(float a, float b) {
  const uint32_t hi = PackBf16(a, b);
  const float ah = __uint_as_float(hi << 16);
  const float bh = __uint_as_float(hi & 0xffff0000u);
  return {hi, PackBf16(a - ah, b - bh)};
}

// c += A B for A [16, 16], B [16, 8] of bf16. Lane 4 g + t holds of
//   A: a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//   B: b0 = (2t.., g), b1 = (2t + 8.., g)
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// The order of the sixteen products is ours to choose as long as A and B agree, and always the
// same.
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

// Sum over a CTA of kThreads threads, the same in all of them. `scratch` [kThreads / 32] in shared
// memory; may be reused after the next barrier.
template <int kThreads>
__device__ __forceinline__ float CtaSum(float x, float* scratch) {
  x = WarpSum(x);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) sum += scratch[i];
  return sum;
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float Silu(float x) { return x * Sigmoid(x); }

__device__ __forceinline__ float Bf16ToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

}  // namespace banyan::trunk::cuda
