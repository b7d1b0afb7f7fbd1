// Products over many rows: x split ahead, then tiles of shared memory. Included by linear.cu alone.
#pragma once

#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear_fragments.cuh"

namespace banyan::trunk::cuda {
namespace {

// x, or silu(x) * up where that is not null, to [row][block][term][32] in bf16: once for all tiles.
// `pieces` of eight columns.
__global__ void __launch_bounds__(kThreads)
    SplitRows(const float* x, const float* up, int64_t pieces, uint4* split) {
  BeginKernel();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= pieces) return;
  const TokenFragment token =
      LoadToken<true>(x + i * 8, up == nullptr ? nullptr : up + i * 8, true);
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    split[(i / 4 * kTerms + term) * 4 + i % 4] = token.term[term];
  }
}

// A tile: so many outputs and rows, shared out to kWarpsM x kWarpsN warps; columns come in steps of
// two blocks, a group of codes, through a ring of kStages in shared memory.
template <int kOutputsOfTile, int kRowsOfTile, int kWarpsAlongOutputs, int kWarpsAlongRows,
          int kStagesOfRing, int kCtas>
struct Tile {
  static constexpr int kOutputs = kOutputsOfTile;
  static constexpr int kRows = kRowsOfTile;
  static constexpr int kWarpsM = kWarpsAlongOutputs;
  static constexpr int kWarpsN = kWarpsAlongRows;
  static constexpr int kStages = kStagesOfRing;
  static constexpr int kCtasPerSm = kCtas;
  static constexpr int kNumThreads = kWarpsM * kWarpsN * kWarp;
};

// Of one step: 16-byte pieces of a row of weights, and of a row of x; where x and scales lie.
template <typename T, bool kCodes>
struct Stage {
  static constexpr int kWeightPieces = kStepBlocks * kBlock * (kCodes ? 1 : 2) / 16;
  static constexpr int kTokenPieces = kStepBlocks * kBlock * 2 * kTerms / 16;
  static constexpr int kTokensAt = T::kOutputs * kWeightPieces * 16;
  static constexpr int kScalesAt = kTokensAt + T::kRows * kTokenPieces * 16;
  static constexpr int kBytes = kScalesAt + (kCodes ? T::kOutputs * 4 : 0);
};

template <typename T, bool kCodes>
__global__ void __launch_bounds__(T::kNumThreads, T::kCtasPerSm)
    ManyRows(const __grid_constant__ Batch batch) {
  using S = Stage<T, kCodes>;
  constexpr int kM = T::kOutputs / T::kWarpsM / 16;
  constexpr int kN = T::kRows / T::kWarpsN / 8;
  constexpr int kAtOnce = kM % 2 == 0 ? 2 : 1;  // of kM
  extern __shared__ __align__(128) unsigned char shared[];
  const int which = FindMatrix(batch, static_cast<int>(blockIdx.y));
  const LinearMatrix& matrix = batch.matrices[which];
  const int n0 = (static_cast<int>(blockIdx.y) - batch.first_cta[which]) * T::kOutputs;
  const int row0 = static_cast<int>(blockIdx.x) * T::kRows;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int num_blocks = matrix.k / kBlock;
  const int num_steps = (num_blocks + kStepBlocks - 1) / kStepBlocks;
  const int64_t weight_bytes = int64_t{matrix.k} * (kCodes ? 1 : 2);
  const auto* const weights = static_cast<const unsigned char*>(matrix.w);
  const uint4* const tokens_from = batch.split;
  const int64_t token_pieces = int64_t{num_blocks} * kTerms * 4;

  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const auto fetch = [&](int step) {
    const uint32_t stage = shared_at + static_cast<uint32_t>(step % T::kStages * S::kBytes);
    if (step < num_steps) {
      // The last step may have one block alone.
      const int blocks = num_blocks - step * kStepBlocks;
      constexpr int kW = S::kWeightPieces;
#pragma unroll
      for (int i = thread; i < T::kOutputs * kW; i += T::kNumThreads) {
        const int row = i / kW;
        const int piece = i % kW;
        if (piece / (kW / kStepBlocks) < blocks) {
          CopyAsync(
              stage + static_cast<uint32_t>(SwizzledPiece<kW>(row, piece) * 16),
              weights + min(n0 + row, matrix.n - 1) * weight_bytes + (step * kW + piece) * 16);
        }
      }
      constexpr int kX = S::kTokenPieces;
#pragma unroll
      for (int i = thread; i < T::kRows * kX; i += T::kNumThreads) {
        const int row = i / kX;
        const int piece = i % kX;
        if (piece / (kX / kStepBlocks) < blocks) {
          CopyAsync(
              stage + static_cast<uint32_t>(S::kTokensAt + SwizzledPiece<kX>(row, piece) * 16),
              tokens_from + min(row0 + row, batch.num_rows - 1) * token_pieces + step * kX + piece);
        }
      }
      if (kCodes && thread < T::kOutputs) {
        const int64_t groups = matrix.k / kGroupColumns;
        CopyAsync4(stage + static_cast<uint32_t>(S::kScalesAt + thread * 4),
                   matrix.scales + min(n0 + thread, matrix.n - 1) * groups + step);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  float acc[kM][kN][4] = {};
  float total[kM][kN][4] = {};
  const int warp_n0 = warp % T::kWarpsM * (kM * 16);
  const int warp_row0 = warp / T::kWarpsM * (kN * 8);
#pragma unroll
  for (int i = 0; i < T::kStages - 1; ++i) fetch(i);
  // Partitions are of whole units: a step of codes, a block of bf16.
  constexpr int kUnitBlocks = kCodes ? kStepBlocks : 1;
  const int num_units = num_blocks / kUnitBlocks;
  int partition = 0;
  int partition_end = num_units / kPartitions;
  const auto join = [&](int unit) {
    while (unit == partition_end) {
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
      partition_end = (partition + 1) * num_units / kPartitions;
    }
  };
  for (int step = 0; step < num_steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(T::kStages - 2));
    __syncthreads();
    fetch(step + T::kStages - 1);
    const unsigned char* const stage = shared + step % T::kStages * S::kBytes;
    const auto load_tokens = [&](int half, TokenFragment(&tokens)[kN]) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int row = warp_row0 + n * 8 + g;
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
          const int piece = (half * kTerms + term) * 4 + t;
          tokens[n].term[term] = *reinterpret_cast<const uint4*>(
              stage + S::kTokensAt + SwizzledPiece<S::kTokenPieces>(row, piece) * 16);
        }
      }
    };
    // Of weight row g of 16 outputs; row g + 8 follows.
    const auto weights_at = [&](int m, int piece) {
      const int row = warp_n0 + m * 16 + g;
      return reinterpret_cast<const uint4*>(stage +
                                            SwizzledPiece<S::kWeightPieces>(row, piece) * 16);
    };
    if constexpr (kCodes) {
      join(step);
#pragma unroll
      for (int m = 0; m < kM; m += kAtOnce) {
        CodeFragment w[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const uint4* const low = weights_at(m + i, t);
          const auto* scales =
              reinterpret_cast<const float*>(stage + S::kScalesAt) + warp_n0 + (m + i) * 16 + g;
          w[i] = {low[0], low[8 * S::kWeightPieces], scales[0], scales[8]};
        }
        MultiplyUnit<kAtOnce, kN>(acc + m, w, load_tokens);
      }
    } else {
#pragma unroll
      for (int half = 0; half < kStepBlocks; ++half) {
        const int block = step * kStepBlocks + half;
        if (block >= num_blocks) break;
        TokenFragment tokens[kN];
        load_tokens(half, tokens);
        join(block);
#pragma unroll
        for (int m = 0; m < kM; m += kAtOnce) {
          Fragment w[kAtOnce];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const uint4* const low = weights_at(m + i, half * 4 + t);
            w[i] = {low[0], low[8 * S::kWeightPieces]};
          }
          MultiplyBlock<kAtOnce, kN>(acc + m, w, tokens);
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
