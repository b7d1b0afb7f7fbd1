#include <cuda_bf16.h>

#include <algorithm>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kPartitions = 16;
constexpr int kBlock = 32;  // columns that a warp takes at a time
constexpr int kThreads = 256;
constexpr int kFewThreads = kPartitions * kWarp;

struct Batch {
  LinearMatrix matrices[kMaxMatrices];
  int32_t first_cta[kMaxMatrices + 1];  // along x
  int32_t num_matrices;
  int32_t num_bf16;   // matrices; those of codes come after them
  int32_t bf16_ctas;  // that take tiles of these
  int32_t num_rows;
};

__device__ __forceinline__ int FindMatrix(const Batch& batch, int cta) {
  int i = 0;
  while (i + 1 < batch.num_matrices && cta >= batch.first_cta[i + 1]) ++i;
  return i;
}

__device__ __forceinline__ uint4 LoadStreaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ uint2 LoadStreaming8(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p));
  return v;
}

// Lane 4 g + t holds columns 8 t .. 8 t + 7 of the block, of weight rows g and g + 8 and of token
// g. Its first four columns make up the first product, the last four the second.
struct Fragment {
  uint4 low;   // weight row g
  uint4 high;  // weight row g + 8
};

struct CodeFragment {
  uint2 low;
  uint2 high;
  float low_scale;
  float high_scale;
};

// Two codes of `word` as bf16: the seven low bits on top of 128, less 128, or 256 for a negative
// one.
template <int kSelect>
__device__ __forceinline__ uint32_t WidenPair(uint32_t word) {
  const uint32_t codes = __byte_perm(word, 0, kSelect);
  const uint32_t value = (codes & 0x007f007fu) | 0x43004300u;
  const uint32_t less = (codes & 0x00800080u) | 0x43004300u;
  __nv_bfloat162 a;
  __nv_bfloat162 b;
  memcpy(&a, &value, 4);
  memcpy(&b, &less, 4);
  a = __hsub2(a, b);
  uint32_t out;
  memcpy(&out, &a, 4);
  return out;
}
__device__ __forceinline__ uint4 Widen(const uint2& codes) {
  return {WidenPair<0x4140>(codes.x), WidenPair<0x4342>(codes.x), WidenPair<0x4140>(codes.y),
          WidenPair<0x4342>(codes.y)};
}

// Where a lane of a warp that multiplies 16 kM outputs reads weights, and what it holds of a block.
template <int kM>
struct Bf16Source {
  using Held = Fragment;
  const uint16_t* low[kM];
  int step_high[kM];  // from weight row g to g + 8

  __device__ __forceinline__ void Enter(const LinearMatrix& matrix, int n0, int g, int t) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      // Beyond the last output: any row will do, its results are dropped.
      const int row = n0 + m * 16 + g;
      const int low_row = min(row, matrix.n - 1);
      low[m] = static_cast<const uint16_t*>(matrix.w) + t * 8 + int64_t{low_row} * matrix.k;
      step_high[m] = (min(row + 8, matrix.n - 1) - low_row) * matrix.k;
    }
  }
  __device__ __forceinline__ void Load(int block, Held (&to)[kM]) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      to[m].low = LoadStreaming(low[m] + block * kBlock);
      to[m].high = LoadStreaming(low[m] + step_high[m] + block * kBlock);
    }
  }
};

template <int kM>
struct CodeSource {
  using Held = CodeFragment;
  const int8_t* low[kM];
  int step_high[kM];
  const float* low_scales[kM];
  int scales_high[kM];

  __device__ __forceinline__ void Enter(const LinearMatrix& matrix, int n0, int g, int t) {
    const int groups = (matrix.k + kGroupColumns - 1) / kGroupColumns;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int row = n0 + m * 16 + g;
      const int low_row = min(row, matrix.n - 1);
      const int between = min(row + 8, matrix.n - 1) - low_row;
      low[m] = static_cast<const int8_t*>(matrix.w) + t * 8 + int64_t{low_row} * matrix.k;
      step_high[m] = between * matrix.k;
      low_scales[m] = matrix.scales + int64_t{low_row} * groups;
      scales_high[m] = between * groups;
    }
  }
  __device__ __forceinline__ void Load(int block, Held (&to)[kM]) const {
    constexpr int kBlocks = kGroupColumns / kBlock;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      to[m].low = LoadStreaming8(low[m] + block * kBlock);
      to[m].high = LoadStreaming8(low[m] + step_high[m] + block * kBlock);
      to[m].low_scale = __ldg(low_scales[m] + block / kBlocks);
      to[m].high_scale = __ldg(low_scales[m] + scales_high[m] + block / kBlocks);
    }
  }
};

struct TokenFragment {
  Split3 pair[4];
};

__device__ __forceinline__ TokenFragment SplitToken(const float4& a, const float4& b) {
  return {
      {SplitThrice(a.x, a.y), SplitThrice(a.z, a.w), SplitThrice(b.x, b.y), SplitThrice(b.z, b.w)}};
}

// One block of columns for kM x kN results. The order of a result's six products is fixed; those of
// different results are interleaved, since each waits for the one before it.
template <int kM, int kN>
__device__ __forceinline__ void MultiplyBlock(float (*acc)[kN][4], const Fragment (&w)[kM],
                                              const TokenFragment* x, int first_n, int num_n) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int term = 0; term < 3; ++term) {
#pragma unroll
      for (int n = 0; n < num_n; ++n) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const uint32_t a[4] = {
              half == 0 ? w[m].low.x : w[m].low.z, half == 0 ? w[m].high.x : w[m].high.z,
              half == 0 ? w[m].low.y : w[m].low.w, half == 0 ? w[m].high.y : w[m].high.w};
          Mma(acc[m][first_n + n], a, x[n].pair[2 * half].term[term],
              x[n].pair[2 * half + 1].term[term]);
        }
      }
    }
  }
}

// The same from zero, then scaled.
__device__ __forceinline__ void AddScaled(float (&acc)[4], const float (&sum)[4], float low,
                                          float high) {
  acc[0] = fmaf(sum[0], low, acc[0]);
  acc[1] = fmaf(sum[1], low, acc[1]);
  acc[2] = fmaf(sum[2], high, acc[2]);
  acc[3] = fmaf(sum[3], high, acc[3]);
}

template <int kM, int kN>
__device__ __forceinline__ void MultiplyHeld(float (*acc)[kN][4], const Fragment (&w)[kM],
                                             const TokenFragment* x) {
  MultiplyBlock<kM, kN>(acc, w, x, 0, kN);
}
template <int kM, int kN>
__device__ __forceinline__ void MultiplyHeld(float (*acc)[kN][4], const CodeFragment (&w)[kM],
                                             const TokenFragment* x) {
  Fragment wide[kM];
#pragma unroll
  for (int m = 0; m < kM; ++m) wide[m] = {Widen(w[m].low), Widen(w[m].high)};
  float sum[kM][kN][4] = {};
  MultiplyBlock<kM, kN>(sum, wide, x, 0, kN);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) AddScaled(acc[m][n], sum[m][n], w[m].low_scale, w[m].high_scale);
  }
}

__device__ __forceinline__ float4 SwigluOf(const float4& gate, const float4& up) {
  return {Silu(gate.x) * up.x, Silu(gate.y) * up.y, Silu(gate.z) * up.z, Silu(gate.w) * up.w};
}

// Rows of x, split, in the order in which lanes multiply them: [block][term][4 rows] of 16 bytes.
__device__ __forceinline__ uint4* StagedAt(uint4* staged, int rows, int block, int term, int lane) {
  return staged + (block * 3 + term) * (4 * rows) + lane;
}

// Eight columns from x, or of silu(x) * up where that is not null.
template <bool kSwiglu>
__device__ __forceinline__ TokenFragment LoadToken(const float* x, const float* up) {
  const auto* p = reinterpret_cast<const float4*>(x);
  float4 a = p[0];
  float4 b = p[1];
  if (kSwiglu && up != nullptr) {
    const auto* q = reinterpret_cast<const float4*>(up);
    a = SwigluOf(a, q[0]);
    b = SwigluOf(b, q[1]);
  }
  return SplitToken(a, b);
}

// A CTA: tiles of 16 kM outputs and 8 kN rows, one after the other; a warp: one partition of the
// columns. Weights are read once, kAhead blocks before they are used, straight into the registers
// of the product; those of the next tile are on their way while the partitions of this one are
// joined. x is the same for all tiles: kStaged keeps it in shared memory, split once, which pays up
// to four rows (H200); else it is split for every tile anew.
template <typename Source, int kM, int kN, int kAhead, bool kStaged, bool kSwiglu>
__device__ __forceinline__ void FewRowsTiles(const Batch& batch, int tile, int num_tiles, int step,
                                             float (*partial)[kM * kN * 4][kWarp], uint4* staged) {
  const int row0 = static_cast<int>(blockIdx.y) * 8 * kN;
  const int rows = min(8 * kN, batch.num_rows - row0);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int num_blocks = batch.matrices[0].k / kBlock;  // the same in all
  const int begin = warp * num_blocks / kPartitions;
  const int end = (warp + 1) * num_blocks / kPartitions;

  int which = 0;
  int n0 = 0;
  Source source;
  const auto enter = [&] {
    which = FindMatrix(batch, tile);
    n0 = (tile - batch.first_cta[which]) * 16 * kM;
    source.Enter(batch.matrices[which], n0, g, t);
  };
  typename Source::Held w[kAhead][kM];
  enter();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i < end) source.Load(begin + i, w[i]);
  }
  AwaitOthers();  // weights are on their way, x may still be in the making
  const float* const x_all = batch.matrices[0].x;
  const float* const up_all = kSwiglu ? batch.matrices[0].up : nullptr;
  const int64_t lane_x = (row0 + g) * int64_t{batch.matrices[0].k} + t * 8;
  const float* const x = x_all + lane_x;
  const float* const up = up_all == nullptr ? nullptr : up_all + lane_x;
  if constexpr (kStaged) {
    // All threads at once: one wait for memory, not one for each block.
    const int pieces = batch.matrices[0].k / 8;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < pieces * rows; i += kFewThreads) {
      const int row = i / pieces;
      const int piece = i % pieces;
      const int64_t from = (row0 + row) * int64_t{batch.matrices[0].k} + piece * 8;
      const TokenFragment token =
          LoadToken<kSwiglu>(x_all + from, up_all ? up_all + from : nullptr);
#pragma unroll
      for (int term = 0; term < 3; ++term) {
        *StagedAt(staged, rows, piece / 4, term, row * 4 + piece % 4) = {
            token.pair[0].term[term], token.pair[1].term[term], token.pair[2].term[term],
            token.pair[3].term[term]};
      }
    }
    __syncthreads();
  }
  while (true) {
    float acc[kM][kN][4] = {};
    const auto multiply = [&](int block, const typename Source::Held(&from)[kM]) {
      TokenFragment tokens[kN] = {};
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int row = n * 8 + g;
        if (row >= rows) continue;
        if constexpr (kStaged) {
#pragma unroll
          for (int term = 0; term < 3; ++term) {
            const uint4 v = *StagedAt(staged, rows, block, term, row * 4 + t);
            tokens[n].pair[0].term[term] = v.x;
            tokens[n].pair[1].term[term] = v.y;
            tokens[n].pair[2].term[term] = v.z;
            tokens[n].pair[3].term[term] = v.w;
          }
        } else {
          const int64_t from = n * 8 * int64_t{batch.matrices[0].k} + block * kBlock;
          tokens[n] = LoadToken<kSwiglu>(x + from, kSwiglu && up != nullptr ? up + from : nullptr);
        }
      }
      MultiplyHeld<kM, kN>(acc, from, tokens);
    };
    int block = begin;
    for (; block + kAhead < end; block += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        multiply(block + i, w[i]);
        if (block + i + kAhead < end) source.Load(block + i + kAhead, w[i]);
      }
    }
    float* const y = batch.matrices[which].y;
    const int n = batch.matrices[which].n;
    const int done_n0 = n0;
    tile += step;
    const bool more = tile < num_tiles;
    if (more) enter();
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (block + i < end) multiply(block + i, w[i]);
      if (more && begin + i < end) source.Load(begin + i, w[i]);
    }
    __syncthreads();  // the tile before this one is joined
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) partial[warp][(m * kN + i) * 4 + e][lane] = acc[m][i][e];
      }
    }
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < kM * kN * 4 * kWarp; at += kFewThreads) {
      // Neighbouring threads take neighbouring outputs of the same row.
      const int output = at % (16 * kM);
      const int row = at / (16 * kM);
      if (row >= rows) break;
      const int value = ((output / 16) * kN + row / 8) * 4 + (output % 16 / 8) * 2 + row % 2;
      const int owner = (output % 8) * 4 + row % 8 / 2;
      float total = 0;
#pragma unroll
      for (int p = 0; p < kPartitions; ++p) total += partial[p][value][owner];
      if (done_n0 + output < n) {
        y[static_cast<int64_t>(row0 + row) * n + done_n0 + output] = total;
      }
    }
    if (!more) return;
  }
}

template <typename Source, int kM, int kN, int kAhead, int kCtasPerSm, bool kStaged, bool kSwiglu>
__global__ void __launch_bounds__(kFewThreads, kCtasPerSm)
    FewRows(const __grid_constant__ Batch batch) {
  LetNextStart();
  __shared__ float partial[kPartitions][kM * kN * 4][kWarp];
  extern __shared__ __align__(16) uint4 staged[];
  FewRowsTiles<Source, kM, kN, kAhead, kStaged, kSwiglu>(
      batch, static_cast<int>(blockIdx.x), batch.first_cta[batch.num_matrices],
      static_cast<int>(gridDim.x), partial, staged);
}

// Matrices of both kinds: the first CTAs take those of bf16.
template <int kN, int kAhead, bool kStaged>
__global__ void __launch_bounds__(kFewThreads) FewRowsOfBoth(const __grid_constant__ Batch batch) {
  LetNextStart();
  __shared__ float partial[kPartitions][kN * 4][kWarp];
  extern __shared__ __align__(16) uint4 staged[];
  const int cta = static_cast<int>(blockIdx.x);
  const int bf16_tiles = batch.first_cta[batch.num_bf16];
  if (cta < batch.bf16_ctas) {
    FewRowsTiles<Bf16Source<1>, 1, kN, kAhead, kStaged, false>(batch, cta, bf16_tiles,
                                                               batch.bf16_ctas, partial, staged);
  } else {
    FewRowsTiles<CodeSource<1>, 1, kN, kAhead, kStaged, false>(
        batch, bf16_tiles + cta - batch.bf16_ctas, batch.first_cta[batch.num_matrices],
        static_cast<int>(gridDim.x) - batch.bf16_ctas, partial, staged);
  }
}

__device__ __forceinline__ void CopyAsync4(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global));
}
__device__ __forceinline__ void CopyAsync(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global));
}

constexpr int kTileOutputs = 128;
constexpr int kStages = 4;

template <bool kCodes>
constexpr int kWeightBytes = kBlock*(kCodes ? 1 : 2);  // of one row of a stage
// Weights, tokens, and a scale for each output.
template <int kRows, bool kCodes>
constexpr int kStageBytes = kTileOutputs* kWeightBytes<kCodes> + kRows* kBlock * 4 +
                            (kCodes ? kTileOutputs * 4 : 0);

// A CTA: 128 outputs, kRows rows, one block of columns after the other through a ring of stages in
// shared memory. kWarpsN warps share the rows, 8 / kWarpsN the outputs.
template <int kRows, int kWarpsN, bool kCodes>
__global__ void __launch_bounds__(kThreads) ManyRows(const __grid_constant__ Batch batch) {
  constexpr int kWarpsM = 8 / kWarpsN;
  constexpr int kM = kTileOutputs / kWarpsM / 16;
  constexpr int kN = kRows / kWarpsN / 8;
  constexpr int kRowBytes = kWeightBytes<kCodes>;
  constexpr int kTokensAt = kTileOutputs * kRowBytes;
  constexpr int kScalesAt = kTokensAt + kRows * kBlock * 4;
  constexpr int kPieces = kRowBytes / 16;
  extern __shared__ __align__(128) unsigned char shared[];
  const int which = FindMatrix(batch, static_cast<int>(blockIdx.y));
  const LinearMatrix& matrix = batch.matrices[which];
  const int n0 = (static_cast<int>(blockIdx.y) - batch.first_cta[which]) * kTileOutputs;
  const int row0 = static_cast<int>(blockIdx.x) * kRows;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int64_t k = matrix.k;
  const int num_blocks = matrix.k / kBlock;

  const int groups = (matrix.k + kGroupColumns - 1) / kGroupColumns;

  // Weights: rows of 64 bytes, or 32 of codes. Tokens: rows of 128 bytes, 16-byte pieces of odd
  // rows swapped in pairs, so that eight lanes reading together touch all banks.
  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const auto fetch = [&](int block) {
    const uint32_t stage =
        shared_at + static_cast<uint32_t>(block % kStages * kStageBytes<kRows, kCodes>);
    if (block < num_blocks) {
#pragma unroll
      for (int i = 0; i < kTileOutputs * kPieces / kThreads; ++i) {
        const int piece = i * kThreads + thread;
        const int64_t row = min(n0 + piece / kPieces, matrix.n - 1);
        CopyAsync(stage + static_cast<uint32_t>(piece * 16),
                  static_cast<const unsigned char*>(matrix.w) +
                      (row * k + block * kBlock) * (kCodes ? 1 : 2) + piece % kPieces * 16);
      }
      if (kCodes && thread < kTileOutputs) {
        const int64_t row = min(n0 + thread, matrix.n - 1);
        CopyAsync4(stage + static_cast<uint32_t>(kScalesAt + thread * 4),
                   matrix.scales + row * groups + block / (kGroupColumns / kBlock));
      }
#pragma unroll
      for (int i = 0; i < kRows * 8 / kThreads; ++i) {
        const int piece = i * kThreads + thread;
        const int row = piece / 8;
        const int64_t from = min(row0 + row, batch.num_rows - 1);
        const int to = row * 8 + ((piece % 8) ^ (row & 1));
        CopyAsync(stage + static_cast<uint32_t>(kTokensAt + to * 16),
                  matrix.x + from * k + block * kBlock + piece % 8 * 4);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  float acc[kM][kN][4] = {};
  float total[kM][kN][4] = {};
  const int warp_n0 = warp % kWarpsM * (kM * 16);
  const int warp_row0 = warp / kWarpsM * (kN * 8);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  int partition = 0;
  int partition_end = num_blocks / kPartitions;
  for (int block = 0; block < num_blocks; ++block) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    fetch(block + kStages - 1);
    while (block == partition_end) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            total[m][n][i] += acc[m][n][i];
            acc[m][n][i] = 0;
          }
        }
      }
      ++partition;
      partition_end = (partition + 1) * num_blocks / kPartitions;
    }
    const unsigned char* stage = shared + block % kStages * kStageBytes<kRows, kCodes>;
    Fragment w[kCodes ? 1 : kM];
    if constexpr (!kCodes) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const unsigned char* p = stage + (warp_n0 + m * 16 + g) * kRowBytes + t * 16;
        w[m].low = *reinterpret_cast<const uint4*>(p);
        w[m].high = *reinterpret_cast<const uint4*>(p + 8 * kRowBytes);
      }
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      TokenFragment tokens[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = warp_row0 + (n + i) * 8 + g;
        const auto* p = reinterpret_cast<const float4*>(stage + kTokensAt + row * 128);
        tokens[i] = SplitToken(p[(2 * t) ^ (row & 1)], p[(2 * t + 1) ^ (row & 1)]);
      }
      if constexpr (!kCodes) {
        MultiplyBlock<kM, kN>(acc, w, tokens, n, 2);
      } else {
        // Two times two results at once: as many as there are registers for.
        static_assert(kM % 2 == 0);
#pragma unroll
        for (int m = 0; m < kM; m += 2) {
          Fragment wide[2];
          float sum[2][2][4] = {};
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const unsigned char* p = stage + (warp_n0 + (m + i) * 16 + g) * kRowBytes + t * 8;
            wide[i] = {Widen(*reinterpret_cast<const uint2*>(p)),
                       Widen(*reinterpret_cast<const uint2*>(p + 8 * kRowBytes))};
          }
          MultiplyBlock<2, 2>(sum, wide, tokens, 0, 2);
          const auto* scales =
              reinterpret_cast<const float*>(stage + kScalesAt) + warp_n0 + m * 16 + g;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              AddScaled(acc[m + i][n + j], sum[i][j], scales[i * 16], scales[i * 16 + 8]);
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = n0 + warp_n0 + m * 16 + g + i / 2 * 8;
        const int row = row0 + warp_row0 + n * 8 + 2 * t + i % 2;
        if (output < matrix.n && row < batch.num_rows) {
          matrix.y[static_cast<int64_t>(row) * matrix.n + output] = total[m][n][i] + acc[m][n][i];
        }
      }
    }
  }
}

// Any shape and alignment: a warp computes one output for kRowsAtOnce rows at a time.
constexpr int kRowsAtOnce = 4;

template <typename W>
__device__ __forceinline__ float Weight(const W* w, int64_t at);
template <>
__device__ __forceinline__ float Weight(const float* w, int64_t at) {
  return w[at];
}
template <>
__device__ __forceinline__ float Weight(const uint16_t* w, int64_t at) {
  return Bf16ToFloat(w[at]);
}
template <>
__device__ __forceinline__ float Weight(const int8_t* w, int64_t at) {
  return static_cast<float>(w[at]);
}

template <typename W>
__global__ void __launch_bounds__(kThreads) AnyShape(LinearMatrix matrix, int32_t num_rows) {
  BeginKernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (n >= matrix.n) return;
  const int64_t k = matrix.k;
  const int64_t groups = (k + kGroupColumns - 1) / kGroupColumns;
  const W* w = static_cast<const W*>(matrix.w) + n * k;
  for (int32_t row0 = static_cast<int32_t>(blockIdx.y) * kRowsAtOnce; row0 < num_rows;
       row0 += static_cast<int32_t>(gridDim.y) * kRowsAtOnce) {
    float acc[kRowsAtOnce] = {};
    for (int64_t i = lane; i < k; i += kWarp) {
      float weight = Weight<W>(w, i);
      if (sizeof(W) == 1) weight *= matrix.scales[n * groups + i / kGroupColumns];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (row0 + r < num_rows) acc[r] = fmaf(matrix.x[(row0 + r) * k + i], weight, acc[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const float sum = WarpSum(acc[r]);
      if (lane == 0 && row0 + r < num_rows) matrix.y[(row0 + r) * int64_t{matrix.n} + n] = sum;
    }
  }
}

bool FitsTensorCores(const LinearMatrix& m) {
  return m.kind != WeightKind::kF32 && m.k % kBlock == 0 && m.k > 0;
}

int32_t PlaceCtas(Batch* batch, int32_t outputs_per_cta) {
  batch->first_cta[0] = 0;
  for (int i = 0; i < batch->num_matrices; ++i) {
    batch->first_cta[i + 1] =
        batch->first_cta[i] + (batch->matrices[i].n + outputs_per_cta - 1) / outputs_per_cta;
  }
  return batch->first_cta[batch->num_matrices];
}

// Up to here x is kept split in shared memory.
constexpr int32_t kMostStagedRows = 4;
constexpr int kJoinBytes = 32 << 10;  // the most that a kernel takes beside it

int StagedBytes(const Batch& batch) { return 6 * batch.matrices[0].k * batch.num_rows; }

bool IsStaged(const Batch& batch, const LinearTuning& tuning) {
  return batch.num_rows <= kMostStagedRows &&
         StagedBytes(batch) + kJoinBytes <= tuning.shared_bytes / 2;
}

template <typename Source, int kM, int kN, int kAhead, int kCtasPerSm, bool kStaged, bool kSwiglu>
void LaunchFew(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  const int tiles = PlaceCtas(batch, 16 * kM);
  const int groups = (batch->num_rows + 8 * kN - 1) / (8 * kN);
  const int resident = std::max(1, tuning.num_sms * kCtasPerSm / groups);
  const dim3 grid(static_cast<unsigned>(std::min(tiles, resident)), static_cast<unsigned>(groups));
  Launch(FewRows<Source, kM, kN, kAhead, kCtasPerSm, kStaged, kSwiglu>, grid, kFewThreads,
         static_cast<size_t>(kStaged ? StagedBytes(*batch) : 0), stream, *batch);
}

template <int kN, int kAhead, bool kStaged>
void LaunchFewOfBoth(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  const int tiles = PlaceCtas(batch, 16);
  const int bf16_tiles = batch->first_cta[batch->num_bf16];
  // At least one for either kind.
  const int ctas = std::clamp(tuning.num_sms, 2, tiles);
  batch->bf16_ctas = std::clamp(static_cast<int>(int64_t{ctas} * bf16_tiles / tiles), 1, ctas - 1);
  Launch(FewRowsOfBoth<kN, kAhead, kStaged>, static_cast<unsigned>(ctas), kFewThreads,
         static_cast<size_t>(kStaged ? StagedBytes(*batch) : 0), stream, *batch);
}

template <int kRows, int kWarpsN, bool kCodes>
void LaunchMany(Batch* batch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((batch->num_rows + kRows - 1) / kRows),
                  static_cast<unsigned>(PlaceCtas(batch, kTileOutputs)));
  LaunchAlone(ManyRows<kRows, kWarpsN, kCodes>, grid, kThreads,
              kStages * kStageBytes<kRows, kCodes>, stream, *batch);
}

// Beyond so many rows the tile kernel is faster, unless its tiles are too few to fill the device:
// H200, docs/performance.md.
constexpr int32_t kMostFewRows = 64;
// Up to here matrices of both kinds share a launch.
constexpr int32_t kMostRowsOfBoth = 16;

// One CTA for each multiprocessor does, or two do better.
bool IsSmall(int64_t outputs, const LinearTuning& tuning) {
  return outputs <= int64_t{tuning.num_sms} * 16;
}

template <template <int> typename Source, bool kCodes>
void LaunchOneKind(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  int64_t outputs = 0;
  for (int i = 0; i < batch->num_matrices; ++i) outputs += batch->matrices[i].n;
  const bool small = IsSmall(outputs, tuning);
  const int32_t rows = batch->num_rows;
  if (IsStaged(*batch, tuning)) {
    return small ? LaunchFew<Source<1>, 1, 1, 8, 1, true, true>(batch, tuning, stream)
                 : LaunchFew<Source<1>, 1, 1, 3, 2, true, true>(batch, tuning, stream);
  }
  if (rows <= 8) {
    return small ? LaunchFew<Source<1>, 1, 1, 8, 1, false, true>(batch, tuning, stream)
                 : LaunchFew<Source<1>, 1, 1, 3, 2, false, false>(batch, tuning, stream);
  }
  if (rows <= 16) {
    // Larger tiles read x less often; smaller ones keep every multiprocessor busy.
    return outputs >= int64_t{tuning.num_sms} * 64
               ? LaunchFew<Source<2>, 2, 2, 2, 1, false, false>(batch, tuning, stream)
               : LaunchFew<Source<1>, 1, 2, 4, 1, false, true>(batch, tuning, stream);
  }
  const int64_t tiles = (int64_t{rows} + 63) / 64 * ((outputs + 127) / 128);
  if (rows <= kMostFewRows || tiles * 2 < tuning.num_sms) {
    return LaunchFew<Source<1>, 1, 4, 2, 1, false, true>(batch, tuning, stream);
  }
  const int64_t large_tiles = (int64_t{rows} + 127) / 128 * ((outputs + 127) / 128);
  if (rows <= 128 || large_tiles < tuning.num_sms) {
    return LaunchMany<64, 2, kCodes>(batch, stream);
  }
  return LaunchMany<128, 8, kCodes>(batch, stream);
}

void LaunchBf16(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  LaunchOneKind<Bf16Source, false>(batch, tuning, stream);
}
void LaunchCodes(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  LaunchOneKind<CodeSource, true>(batch, tuning, stream);
}

void LaunchBothKinds(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  std::stable_partition(batch->matrices, batch->matrices + batch->num_matrices,
                        [](const LinearMatrix& m) { return m.kind == WeightKind::kBf16; });
  batch->num_bf16 = 0;
  while (batch->num_bf16 < batch->num_matrices &&
         batch->matrices[batch->num_bf16].kind == WeightKind::kBf16) {
    ++batch->num_bf16;
  }
  if (batch->num_bf16 == batch->num_matrices) return LaunchBf16(batch, tuning, stream);
  if (batch->num_bf16 == 0) return LaunchCodes(batch, tuning, stream);
  int64_t outputs = 0;
  for (int i = 0; i < batch->num_matrices; ++i) outputs += batch->matrices[i].n;
  if (batch->num_rows <= kMostRowsOfBoth && IsSmall(outputs, tuning)) {
    if (IsStaged(*batch, tuning)) return LaunchFewOfBoth<1, 6, true>(batch, tuning, stream);
    return batch->num_rows <= 8 ? LaunchFewOfBoth<1, 6, false>(batch, tuning, stream)
                                : LaunchFewOfBoth<2, 4, false>(batch, tuning, stream);
  }
  Batch codes = *batch;
  codes.num_matrices = batch->num_matrices - batch->num_bf16;
  std::copy_n(batch->matrices + batch->num_bf16, codes.num_matrices, codes.matrices);
  batch->num_matrices = batch->num_bf16;
  LaunchBf16(batch, tuning, stream);
  LaunchCodes(&codes, tuning, stream);
}

// Matrices that take the same x share a launch.
void LaunchTensorCores(const Batch& all, const LinearTuning& tuning, cudaStream_t stream) {
  bool done[kMaxMatrices] = {};
  for (int first = 0; first < all.num_matrices; ++first) {
    if (done[first]) continue;
    Batch batch = {};
    batch.num_rows = all.num_rows;
    const LinearMatrix& like = all.matrices[first];
    for (int i = first; i < all.num_matrices; ++i) {
      const LinearMatrix& m = all.matrices[i];
      if (done[i] || m.x != like.x || m.k != like.k || m.up != like.up) continue;
      done[i] = true;
      batch.matrices[batch.num_matrices++] = m;
    }
    LaunchBothKinds(&batch, tuning, stream);
  }
}

// Raises the limit on the shared memory of a kernel for few rows to what the device has.
cudaError_t AllowStaged(void (*kernel)(Batch)) {
  int device = 0;
  int most = 0;
  cudaFuncAttributes attributes = {};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(attributes.sharedSizeBytes));
}

template <template <int> typename Source>
cudaError_t AllowStagedOfKind() {
  const cudaError_t error = AllowStaged(FewRows<Source<1>, 1, 1, 8, 1, true, true>);
  if (error != cudaSuccess) return error;
  return AllowStaged(FewRows<Source<1>, 1, 1, 3, 2, true, true>);
}

}  // namespace

cudaError_t PrepareLinear() {
  const auto allow = [](void (*kernel)(Batch), int bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  cudaError_t error = AllowStagedOfKind<Bf16Source>();
  if (error != cudaSuccess) return error;
  error = AllowStagedOfKind<CodeSource>();
  if (error != cudaSuccess) return error;
  error = AllowStaged(FewRowsOfBoth<1, 6, true>);
  if (error != cudaSuccess) return error;
  error = allow(ManyRows<128, 8, false>, kStages * kStageBytes<128, false>);
  if (error != cudaSuccess) return error;
  error = allow(ManyRows<64, 2, false>, kStages * kStageBytes<64, false>);
  if (error != cudaSuccess) return error;
  error = allow(ManyRows<128, 8, true>, kStages * kStageBytes<128, true>);
  if (error != cudaSuccess) return error;
  return allow(ManyRows<64, 2, true>, kStages * kStageBytes<64, true>);
}

bool TakesSwiglu(const LinearMatrix& matrix, int32_t num_rows, const LinearTuning& tuning) {
  return FitsTensorCores(matrix) && num_rows <= kMostFewRows && IsSmall(matrix.n, tuning);
}

cudaError_t Linear(const LinearMatrix* matrices, int num_matrices, int32_t num_rows,
                   const LinearTuning& tuning, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  Batch batch = {};
  batch.num_rows = num_rows;
  for (int i = 0; i < num_matrices; ++i) {
    const LinearMatrix& m = matrices[i];
    if (m.n == 0) continue;
    if (FitsTensorCores(m)) {
      batch.matrices[batch.num_matrices++] = m;
      continue;
    }
    const dim3 grid(
        static_cast<unsigned>((m.n + 7) / 8),
        static_cast<unsigned>(std::min((num_rows + kRowsAtOnce - 1) / kRowsAtOnce, 65535)));
    switch (m.kind) {
      case WeightKind::kBf16:
        Launch(AnyShape<uint16_t>, grid, kThreads, 0, stream, m, num_rows);
        break;
      case WeightKind::kInt8:
        Launch(AnyShape<int8_t>, grid, kThreads, 0, stream, m, num_rows);
        break;
      case WeightKind::kF32:
        Launch(AnyShape<float>, grid, kThreads, 0, stream, m, num_rows);
        break;
    }
  }
  LaunchTensorCores(batch, tuning, stream);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
