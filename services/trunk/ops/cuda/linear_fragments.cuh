// What the kernels of linear.cu share: weights and rows as tensor-core products take them. Included
// by linear.cu alone.
#pragma once

#include <cuda_bf16.h>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear_batch.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kPartitions = 16;
constexpr int kBlock = 32;  // columns that a warp takes at a time
constexpr int kThreads = 256;
constexpr int kFewThreads = kPartitions * kWarp;

using Batch = LinearBatch;

__device__ __forceinline__ int FindMatrix(const Batch& batch, int cta) {
  int i = 0;
  while (i + 1 < batch.num_matrices && cta >= batch.first_cta[i + 1]) ++i;
  return i;
}

// Of weights. As LoadEarly, which says why it is not ld.global.nc.
__device__ __forceinline__ uint4 LoadStreaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

// Lane 4 g + t holds columns 8 t .. 8 t + 7 of the block, of weight rows g and g + 8 and of token
// g. Its first four columns make up the first product, the last four the second.
struct Fragment {
  uint4 low;   // weight row g
  uint4 high;  // weight row g + 8
};

// The same of a group of codes, two blocks: x and y of the first, z and w of the second.
struct CodeFragment {
  uint4 low;
  uint4 high;
  float low_scale;
  float high_scale;
};

// Two codes of `word` as bf16: the seven low bits on top of 128, less 128, or 256 for a negative
// one.
template <int kSelect>
__device__ __forceinline__ uint32_t WidenPair(uint32_t word) {
  const uint32_t codes = __byte_perm(word, 0, kSelect);
  // In one instruction each, for which one constant has to lie in a register: left to itself the
  // compiler takes two.
  uint32_t base;
  uint32_t value;
  uint32_t less;
  asm("mov.b32 %0, 0x43004300;" : "=r"(base));
  asm("lop3.b32 %0, %1, 0x007f007f, %2, 0xea;" : "=r"(value) : "r"(codes), "r"(base));
  asm("lop3.b32 %0, %1, 0x00800080, %2, 0xea;" : "=r"(less) : "r"(codes), "r"(base));
  __nv_bfloat162 a;
  __nv_bfloat162 b;
  memcpy(&a, &value, 4);
  memcpy(&b, &less, 4);
  a = __hsub2(a, b);
  uint32_t out;
  memcpy(&out, &a, 4);
  return out;
}
__device__ __forceinline__ uint4 Widen(uint32_t first, uint32_t last) {
  return {WidenPair<0x4140>(first), WidenPair<0x4342>(first), WidenPair<0x4140>(last),
          WidenPair<0x4342>(last)};
}
// One of the two blocks.
__device__ __forceinline__ Fragment WidenBlock(const uint4& low, const uint4& high, int block) {
  return block == 0 ? Fragment{Widen(low.x, low.y), Widen(high.x, high.y)}
                    : Fragment{Widen(low.z, low.w), Widen(high.z, high.w)};
}

// Where a lane of a warp that multiplies 16 outputs reads weights, and what it holds of a unit: of
// kBlocks blocks.
struct Bf16Source {
  using Held = Fragment;
  static constexpr int kBlocks = 1;
  const uint16_t* low;
  int step_high;  // from weight row g to g + 8

  __device__ __forceinline__ void Enter(const LinearMatrix& matrix, int n0, int g, int t) {
    // Beyond the last output: any row will do, its results are dropped.
    const int row = n0 + g;
    const int low_row = min(row, matrix.n - 1);
    low = static_cast<const uint16_t*>(matrix.w) + t * 8 + int64_t{low_row} * matrix.k;
    step_high = (min(row + 8, matrix.n - 1) - low_row) * matrix.k;
  }
  __device__ __forceinline__ void LoadWeights(int unit, Held* to) const {
    to->low = LoadStreaming(low + unit * kBlock);
    to->high = LoadStreaming(low + step_high + unit * kBlock);
  }
  template <int kUnits>
  __device__ __forceinline__ void LoadScales(int, Held*) const {}
};

struct CodeSource {
  using Held = CodeFragment;
  static constexpr int kBlocks = kGroupColumns / kBlock;
  const int8_t* low;
  int step_high;
  const float* low_scales;
  int scales_high;

  __device__ __forceinline__ void Enter(const LinearMatrix& matrix, int n0, int g, int t) {
    const int groups = matrix.k / kGroupColumns;
    const int row = n0 + g;
    const int low_row = min(row, matrix.n - 1);
    const int between = min(row + 8, matrix.n - 1) - low_row;
    low = static_cast<const int8_t*>(matrix.w) + t * 16 + int64_t{low_row} * matrix.k;
    step_high = between * matrix.k;
    low_scales = matrix.scales + int64_t{low_row} * groups;
    scales_high = between * groups;
  }
  __device__ __forceinline__ void LoadWeights(int unit, Held* to) const {
    to->low = LoadStreaming(low + unit * kGroupColumns);
    to->high = LoadStreaming(low + step_high + unit * kGroupColumns);
  }
  // Of kUnits units at once: 1, or 2 or 4 from a multiple of that on, in rows of such a multiple.
  template <int kUnits>
  __device__ __forceinline__ void LoadScales(int unit, Held* to) const {
    float low_of[kUnits];
    float high_of[kUnits];
    LoadEarly(low_scales + unit, low_of);
    LoadEarly(low_scales + scales_high + unit, high_of);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      to[i].low_scale = low_of[i];
      to[i].high_scale = high_of[i];
    }
  }
};

// Eight columns of a row as the sum of kTerms bf16 each, the largest first; two values packed.
struct TokenFragment {
  uint4 term[kTerms];
};

__device__ __forceinline__ uint32_t TakeBf16(float* a, float* b) {
  const uint32_t packed = PackBf16(*a, *b);
  *a -= __uint_as_float(packed << 16);
  *b -= __uint_as_float(packed & 0xffff0000u);
  return packed;
}

__device__ __forceinline__ TokenFragment SplitToken(float4 a, float4 b) {
  TokenFragment token;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    token.term[term] = {TakeBf16(&a.x, &a.y), TakeBf16(&a.z, &a.w), TakeBf16(&b.x, &b.y),
                        TakeBf16(&b.z, &b.w)};
  }
  return token;
}

__device__ __forceinline__ float4 SwigluOf(const float4& gate, const float4& up) {
  return {Silu(gate.x) * up.x, Silu(gate.y) * up.y, Silu(gate.z) * up.z, Silu(gate.w) * up.w};
}

// Eight columns from x, or of silu(x) * up where that is not null; zeros where there is no such
// row. Nothing but the loads depends on that, so that those of several rows are on their way at
// once.
template <bool kSwiglu>
__device__ __forceinline__ TokenFragment LoadToken(const float* x, const float* up, bool present) {
  float4 a = {0, 0, 0, 0};
  float4 b = {0, 0, 0, 0};
  if (present) {
    const auto* p = reinterpret_cast<const float4*>(x);
    a = p[0];
    b = p[1];
    if (kSwiglu && up != nullptr) {
      const auto* q = reinterpret_cast<const float4*>(up);
      a = SwigluOf(a, q[0]);
      b = SwigluOf(b, q[1]);
    }
  }
  return SplitToken(a, b);
}

// One block of columns for kM x kN results. The order of a result's products is fixed; those of
// different results are interleaved, since each waits for the one before it.
template <int kM, int kN>
__device__ __forceinline__ void MultiplyBlock(float (*acc)[kN][4], const Fragment (&w)[kM],
                                              const TokenFragment (&x)[kN]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const uint32_t a[4] = {
            half == 0 ? w[m].low.x : w[m].low.z, half == 0 ? w[m].high.x : w[m].high.z,
            half == 0 ? w[m].low.y : w[m].low.w, half == 0 ? w[m].high.y : w[m].high.w};
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const uint4& b = x[n].term[term];
          Mma(acc[m][n], a, half == 0 ? b.x : b.z, half == 0 ? b.y : b.w);
        }
      }
    }
  }
}

__device__ __forceinline__ void AddScaled(float (&acc)[4], const float (&sum)[4], float low,
                                          float high) {
  acc[0] = fmaf(sum[0], low, acc[0]);
  acc[1] = fmaf(sum[1], low, acc[1]);
  acc[2] = fmaf(sum[2], high, acc[2]);
  acc[3] = fmaf(sum[3], high, acc[3]);
}

// One unit. load(b, x) gives block b of the rows.
template <int kM, int kN, typename Load>
__device__ __forceinline__ void MultiplyUnit(float (*acc)[kN][4], const Fragment (&w)[kM],
                                             const Load& load) {
  TokenFragment x[kN];
  load(0, x);
  MultiplyBlock<kM, kN>(acc, w, x);
}
// From zero, then scaled.
template <int kM, int kN, typename Load>
__device__ __forceinline__ void MultiplyUnit(float (*acc)[kN][4], const CodeFragment (&w)[kM],
                                             const Load& load) {
  float sum[kM][kN][4] = {};
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    TokenFragment x[kN];
    load(block, x);
    Fragment wide[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) wide[m] = WidenBlock(w[m].low, w[m].high, block);
    MultiplyBlock<kM, kN>(sum, wide, x);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) AddScaled(acc[m][n], sum[m][n], w[m].low_scale, w[m].high_scale);
  }
}

// Columns of many rows come in steps of two blocks, a group of codes.
constexpr int kStepBlocks = 2;
static_assert(kStepBlocks * kBlock == kGroupColumns);

__device__ __forceinline__ void CopyAsync4(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global));
}
__device__ __forceinline__ void CopyAsync(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global));
}

// Where piece `piece` of a row lies. Eight lanes read half of a 128-byte line from each of two
// rows, or the 64 bytes of each of two: all banks once.
template <int kPieces>
__device__ __forceinline__ int SwizzledPiece(int row, int piece) {
  return row * kPieces + (kPieces == 4 ? piece : piece ^ ((row & 1) << 2));
}

}  // namespace
}  // namespace banyan::trunk::cuda
