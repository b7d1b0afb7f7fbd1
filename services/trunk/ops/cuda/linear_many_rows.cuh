// Products over many rows: tiles of shared memory. Included by linear.cu alone.
#pragma once

#include "services/trunk/ops/cuda/linear_fragments.cuh"

namespace banyan::trunk::cuda {
namespace {

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

}  // namespace
}  // namespace banyan::trunk::cuda
