// Tiles of linear_hopper.cu: the kernel, its warps that copy, and what they share with those that
// multiply (linear_hopper_sums.cuh). Included by linear_hopper.cu alone.
#pragma once

#include "services/trunk/ops/cuda/linear_hopper_sums.cuh"

namespace banyan::trunk::cuda {
namespace {

// What a CTA works on, tile after tile: those of the same outputs follow each other.
template <typename T>
struct TilesOfCta {
  int row_tiles;
  int index;
  int end;

  __device__ __forceinline__ explicit TilesOfCta(const LinearBatch& batch)
      : row_tiles((batch.num_rows + kTileRows - 1) / kTileRows),
        index(static_cast<int>(blockIdx.x)),
        end(row_tiles * batch.first_cta[batch.num_matrices]) {}
  __device__ __forceinline__ bool Done() const { return index >= end; }
  __device__ __forceinline__ void Next() { index += static_cast<int>(gridDim.x); }
  __device__ __forceinline__ int row_tile() const { return index % row_tiles; }
  // Among all matrices' tiles of outputs.
  __device__ __forceinline__ int output_tile() const { return index / row_tiles; }
};

// A warpgroup's work: weights and scales by its threads, x by the copy engine.
template <typename T>
__device__ __forceinline__ void CopyTiles(const LinearBatch& batch, Ring<T> ring, int thread) {
  constexpr int kW = T::kWeightPieces;
  const int k = batch.matrices[0].k;  // all have it
  const int num_blocks = k / kBlock;
  const int64_t weight_bytes = int64_t{k} * (T::kCodes ? 1 : 2);
  const int piece = thread % kW;
  for (TilesOfCta<T> tiles(batch); !tiles.Done(); tiles.Next()) {
    const int tile = tiles.output_tile();
    const int which = FindMatrix(batch, tile);
    const LinearMatrix& matrix = batch.matrices[which];
    const int n0 = (tile - batch.first_cta[which]) * T::kOutputs;
    const auto* const weights = static_cast<const unsigned char*>(matrix.w) + piece * 16;
    const auto* const tokens = reinterpret_cast<const unsigned char*>(batch.split) +
                               int64_t{tiles.row_tile()} * num_blocks * kTokenBlockBytes;
    for (int block = 0; block < num_blocks; block += kStepBlocks) {
      const uint32_t stage = ring.stage();
      const uint32_t full = ring.full_barrier();
      ring.AwaitEmpty();
      // The last step may have one block alone.
      const int blocks = min(num_blocks - block, kStepBlocks);
      if (thread == 0) {
        const auto bytes = static_cast<uint32_t>(blocks * kTokenBlockBytes);
        BarrierExpect(full, bytes);
        CopyBulk(stage + T::kTokensAt, tokens + int64_t{block} * kTokenBlockBytes, bytes, full);
      }
      if (piece / (kW / kStepBlocks) < blocks) {
#pragma unroll 4
        for (int row = thread / kW; row < T::kOutputs; row += kWarpgroup / kW) {
          // Beyond the last output: any row will do, its results are dropped.
          CopyAsync(stage + static_cast<uint32_t>(SwizzledPiece<kW>(row, piece) * 16),
                    weights + min(n0 + row, matrix.n - 1) * weight_bytes +
                        block * (kW / kStepBlocks * 16));
        }
      }
      if constexpr (T::kCodes) {
        if (thread < T::kOutputs) {
          const int64_t groups = k / kGroupColumns;
          CopyAsync4(stage + static_cast<uint32_t>(T::kScalesAt + thread * 4),
                     matrix.scales + min(n0 + thread, matrix.n - 1) * groups + block / kStepBlocks);
        }
      }
      BarrierArriveAfterCopies(full);
      ring.Next();
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// The work of the other warpgroups.
template <typename T>
__device__ __forceinline__ void MultiplyTiles(const LinearBatch& batch, const Ring<T>& ring,
                                              const unsigned char* shared, int thread) {
  Steps<T> steps(ring, shared, thread);
  const int num_blocks = batch.matrices[0].k / kBlock;
  for (TilesOfCta<T> tiles(batch); !tiles.Done(); tiles.Next()) {
    TileSums<T> sums;
    if constexpr (T::kCodes) {
      SumCodes(num_blocks / kStepBlocks, &steps, &sums);
    } else {
      SumBf16(num_blocks, &steps, &sums);
    }
    const int tile = tiles.output_tile();
    const int which = FindMatrix(batch, tile);
    const LinearMatrix& matrix = batch.matrices[which];
    const int output = (tile - batch.first_cta[which]) * T::kOutputs + steps.weight_row;
    const bool low = output < matrix.n;
    const bool high = output + 8 < matrix.n;
    int row = tiles.row_tile() * kTileRows + 2 * steps.t;
    float* y = matrix.y + int64_t{row} * matrix.n + output;
#pragma unroll
    for (int part = 0; part < T::kParts; ++part) {
#pragma unroll
      for (int n = 0; n < TileSums<T>::kN; ++n) {
        const float(&total)[4] = sums.total[part][n];
        const float(&acc)[4] = sums.acc[part][n];
        if (row < batch.num_rows) {
          if (low) y[0] = total[0] + acc[0];
          if (high) y[8] = total[2] + acc[2];
        }
        y += matrix.n;
        if (row + 1 < batch.num_rows) {
          if (low) y[0] = total[1] + acc[1];
          if (high) y[8] = total[3] + acc[3];
        }
        y += int64_t{7} * matrix.n;
        row += 8;
      }
    }
  }
}

// As ManyRows.
template <typename T>
__global__ void __launch_bounds__(T::kNumThreads, 1)
    HopperTiles(const __grid_constant__ LinearBatch batch) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ __align__(8) uint64_t full[T::kStages];
  __shared__ __align__(8) uint64_t empty[T::kStages];
  const Ring<T> ring = {SharedAddress(shared), SharedAddress(full), SharedAddress(empty)};
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < T::kStages) {
    // Every thread that copies, and the bytes of x; every warp that multiplies.
    BarrierInit(ring.full + static_cast<uint32_t>(thread * 8), kWarpgroup + 1);
    BarrierInit(ring.empty + static_cast<uint32_t>(thread * 8), T::kGroups * 4);
    BarriersInitializedForCopies();
  }
  __syncthreads();
  // Three warpgroups start with 168 registers a thread and have no more to share out; two have all
  // that a thread can have.
  if (thread >= T::kMultiplyThreads) {
    if constexpr (T::kGroups == 2) GiveRegisters<40>();
    CopyTiles<T>(batch, ring, thread - T::kMultiplyThreads);
  } else {
    if constexpr (T::kGroups == 2) TakeRegisters<232>();
    MultiplyTiles<T>(batch, ring, shared, thread);
  }
}

}  // namespace
}  // namespace banyan::trunk::cuda
