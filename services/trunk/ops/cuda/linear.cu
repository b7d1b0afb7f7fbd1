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

// Lane 4 g + t holds columns 8 t .. 8 t + 7 of the block, of weight rows g and g + 8 and of token
// g. Its first four columns make up the first product, the last four the second.
struct Fragment {
  uint4 low;   // weight row g
  uint4 high;  // weight row g + 8
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

// A CTA: tiles of 16 kM outputs and 8 kN rows, one after the other; a warp: one partition of the
// columns. Weights are read once, kAhead blocks before they are used, straight into the registers
// of the product; those of the next tile are on their way while the partitions of this one are
// joined.
template <int kM, int kN, int kAhead, int kCtasPerSm>
__global__ void __launch_bounds__(kFewThreads, kCtasPerSm)
    FewRows(const __grid_constant__ Batch batch) {
  LetNextStart();
  const int num_tiles = batch.first_cta[batch.num_matrices];
  const int row0 = static_cast<int>(blockIdx.y) * 8 * kN;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;

  int which = 0;
  int n0 = 0;
  int begin = 0;
  int end = 0;
  const uint16_t* low[kM];
  int step_high[kM];  // from weight row g to g + 8
  const auto enter = [&](int tile) {
    which = FindMatrix(batch, tile);
    const LinearMatrix& matrix = batch.matrices[which];
    n0 = (tile - batch.first_cta[which]) * 16 * kM;
    const int num_blocks = matrix.k / kBlock;
    begin = warp * num_blocks / kPartitions;
    end = (warp + 1) * num_blocks / kPartitions;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      // Beyond the last output: any row will do, its results are dropped.
      const int row = n0 + m * 16 + g;
      const int low_row = min(row, matrix.n - 1);
      low[m] = static_cast<const uint16_t*>(matrix.w) + t * 8 + int64_t{low_row} * matrix.k;
      step_high[m] = (min(row + 8, matrix.n - 1) - low_row) * matrix.k;
    }
  };
  Fragment w[kAhead][kM];
  const auto load = [&](int block, Fragment(&to)[kM]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      to[m].low = LoadStreaming(low[m] + block * kBlock);
      to[m].high = LoadStreaming(low[m] + step_high[m] + block * kBlock);
    }
  };
  const auto load_first = [&] {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i < end) load(begin + i, w[i]);
    }
  };

  constexpr int kValues = kM * kN * 4;
  __shared__ float partial[kPartitions][kValues][kWarp];
  int tile = static_cast<int>(blockIdx.x);
  enter(tile);
  load_first();
  AwaitOthers();  // weights are on their way, x may still be in the making
  while (true) {
    float acc[kM][kN][4] = {};
    const LinearMatrix& matrix = batch.matrices[which];
    const float* x = matrix.x + (row0 + g) * int64_t{matrix.k} + t * 8;
    const auto multiply = [&](int block, const Fragment(&from)[kM]) {
      TokenFragment tokens[kN];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        float4 a = {0, 0, 0, 0};
        float4 b = {0, 0, 0, 0};
        if (row0 + n * 8 + g < batch.num_rows) {
          const auto* p =
              reinterpret_cast<const float4*>(x + n * 8 * int64_t{matrix.k} + block * kBlock);
          a = p[0];
          b = p[1];
        }
        tokens[n] = SplitToken(a, b);
      }
      MultiplyBlock<kM, kN>(acc, from, tokens, 0, kN);
    };
    int block = begin;
    for (; block + kAhead <= end; block += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        multiply(block + i, w[i]);
        if (block + i + kAhead < end) load(block + i + kAhead, w[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (block + i < end) multiply(block + i, w[i]);
    }

    float* const y = matrix.y;
    const int n = matrix.n;
    const int done_n0 = n0;
    tile += static_cast<int>(gridDim.x);
    const bool more = tile < num_tiles;
    if (more) {
      enter(tile);
      load_first();
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
    for (int at = static_cast<int>(threadIdx.x); at < kValues * kWarp; at += kFewThreads) {
      // Neighbouring threads take neighbouring outputs of the same row.
      const int output = at % (16 * kM);
      const int row = at / (16 * kM);
      const int value = ((output / 16) * kN + row / 8) * 4 + (output % 16 / 8) * 2 + row % 2;
      const int owner = (output % 8) * 4 + row % 8 / 2;
      float total = 0;
#pragma unroll
      for (int p = 0; p < kPartitions; ++p) total += partial[p][value][owner];
      if (done_n0 + output < n && row0 + row < batch.num_rows) {
        y[static_cast<int64_t>(row0 + row) * n + done_n0 + output] = total;
      }
    }
    if (!more) return;
  }
}

__device__ __forceinline__ void CopyAsync(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global));
}

constexpr int kTileOutputs = 128;
constexpr int kStages = 4;

template <int kRows>
constexpr int kStageBytes = kTileOutputs* kBlock * 2 + kRows* kBlock * 4;

// A CTA: 128 outputs, kRows rows, one block of columns after the other through a ring of stages in
// shared memory. kWarpsN warps share the rows, 8 / kWarpsN the outputs.
template <int kRows, int kWarpsN>
__global__ void __launch_bounds__(kThreads) ManyRows(const __grid_constant__ Batch batch) {
  constexpr int kWarpsM = 8 / kWarpsN;
  constexpr int kM = kTileOutputs / kWarpsM / 16;
  constexpr int kN = kRows / kWarpsN / 8;
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

  // Weights: rows of 64 bytes. Tokens: rows of 128 bytes, 16-byte pieces of odd rows swapped in
  // pairs, so that eight lanes reading together touch all banks.
  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const auto fetch = [&](int block) {
    const uint32_t stage = shared_at + static_cast<uint32_t>(block % kStages * kStageBytes<kRows>);
    if (block < num_blocks) {
#pragma unroll
      for (int i = 0; i < kTileOutputs * 4 / kThreads; ++i) {
        const int piece = i * kThreads + thread;
        const int64_t row = min(n0 + piece / 4, matrix.n - 1);
        CopyAsync(
            stage + static_cast<uint32_t>(piece * 16),
            static_cast<const uint16_t*>(matrix.w) + row * k + block * kBlock + piece % 4 * 8);
      }
#pragma unroll
      for (int i = 0; i < kRows * 8 / kThreads; ++i) {
        const int piece = i * kThreads + thread;
        const int row = piece / 8;
        const int64_t from = min(row0 + row, batch.num_rows - 1);
        const int to = row * 8 + ((piece % 8) ^ (row & 1));
        CopyAsync(stage + static_cast<uint32_t>(kTileOutputs * kBlock * 2 + to * 16),
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
    const unsigned char* stage = shared + block % kStages * kStageBytes<kRows>;
    Fragment w[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const unsigned char* p = stage + (warp_n0 + m * 16 + g) * 64 + t * 16;
      w[m].low = *reinterpret_cast<const uint4*>(p);
      w[m].high = *reinterpret_cast<const uint4*>(p + 8 * 64);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      TokenFragment tokens[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = warp_row0 + (n + i) * 8 + g;
        const auto* p =
            reinterpret_cast<const float4*>(stage + kTileOutputs * kBlock * 2 + row * 128);
        tokens[i] = SplitToken(p[(2 * t) ^ (row & 1)], p[(2 * t + 1) ^ (row & 1)]);
      }
      MultiplyBlock<kM, kN>(acc, w, tokens, n, 2);
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

template <typename W>
__global__ void __launch_bounds__(kThreads) AnyShape(LinearMatrix matrix, int32_t num_rows) {
  BeginKernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (n >= matrix.n) return;
  const int64_t k = matrix.k;
  const W* w = static_cast<const W*>(matrix.w) + n * k;
  for (int32_t row0 = static_cast<int32_t>(blockIdx.y) * kRowsAtOnce; row0 < num_rows;
       row0 += static_cast<int32_t>(gridDim.y) * kRowsAtOnce) {
    float acc[kRowsAtOnce] = {};
    for (int64_t i = lane; i < k; i += kWarp) {
      const float weight = Weight<W>(w, i);
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

bool FitsTensorCores(const LinearMatrix& m) { return m.bf16 && m.k % kBlock == 0 && m.k > 0; }

int32_t PlaceCtas(Batch* batch, int32_t outputs_per_cta) {
  batch->first_cta[0] = 0;
  for (int i = 0; i < batch->num_matrices; ++i) {
    batch->first_cta[i + 1] =
        batch->first_cta[i] + (batch->matrices[i].n + outputs_per_cta - 1) / outputs_per_cta;
  }
  return batch->first_cta[batch->num_matrices];
}

template <int kM, int kN, int kAhead, int kCtasPerSm>
void LaunchFew(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  const int tiles = PlaceCtas(batch, 16 * kM);
  const int groups = (batch->num_rows + 8 * kN - 1) / (8 * kN);
  const int resident = std::max(1, tuning.num_sms * kCtasPerSm / groups);
  const dim3 grid(static_cast<unsigned>(std::min(tiles, resident)), static_cast<unsigned>(groups));
  Launch(FewRows<kM, kN, kAhead, kCtasPerSm>, grid, kFewThreads, 0, stream, *batch);
}

template <int kRows, int kWarpsN>
void LaunchMany(Batch* batch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((batch->num_rows + kRows - 1) / kRows),
                  static_cast<unsigned>(PlaceCtas(batch, kTileOutputs)));
  LaunchAlone(ManyRows<kRows, kWarpsN>, grid, kThreads, kStages * kStageBytes<kRows>, stream,
              *batch);
}

// Beyond so many rows the tile kernel is faster, unless its tiles are too few to fill the device:
// H200, docs/performance.md.
constexpr int32_t kMostFewRows = 64;

void LaunchTensorCores(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  int64_t outputs = 0;
  for (int i = 0; i < batch->num_matrices; ++i) outputs += batch->matrices[i].n;
  // Larger tiles read x less often; smaller ones keep every multiprocessor busy.
  const bool wide = outputs >= int64_t{tuning.num_sms} * 64;
  if (batch->num_rows <= 8) {
    // One CTA for each multiprocessor, or two.
    return outputs <= int64_t{tuning.num_sms} * 16 ? LaunchFew<1, 1, 8, 1>(batch, tuning, stream)
                                                   : LaunchFew<1, 1, 3, 2>(batch, tuning, stream);
  }
  if (batch->num_rows <= 16) {
    return wide ? LaunchFew<2, 2, 2, 1>(batch, tuning, stream)
                : LaunchFew<1, 2, 4, 1>(batch, tuning, stream);
  }
  const int64_t tiles = (int64_t{batch->num_rows} + 63) / 64 * ((outputs + 127) / 128);
  if (batch->num_rows <= kMostFewRows || tiles * 2 < tuning.num_sms) {
    return LaunchFew<1, 4, 2, 1>(batch, tuning, stream);
  }
  if (batch->num_rows <= 128 || outputs <= int64_t{tuning.num_sms} * 16) {
    return LaunchMany<64, 2>(batch, stream);
  }
  return LaunchMany<128, 8>(batch, stream);
}

}  // namespace

cudaError_t PrepareLinear() {
  cudaError_t error = cudaFuncSetAttribute(
      ManyRows<128, 8>, cudaFuncAttributeMaxDynamicSharedMemorySize, kStages * kStageBytes<128>);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(ManyRows<64, 2>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kStages * kStageBytes<64>);
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
    if (m.bf16) {
      Launch(AnyShape<uint16_t>, grid, kThreads, 0, stream, m, num_rows);
    } else {
      Launch(AnyShape<float>, grid, kThreads, 0, stream, m, num_rows);
    }
  }
  if (batch.num_matrices > 0) LaunchTensorCores(&batch, tuning, stream);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
