// How warps of linear_hopper_tiles.cuh sum a tile: from stages in shared memory that other warps
// fill, in the order of MultiplyBlock and of partitions, by wgmma.
#pragma once

#include "services/trunk/ops/cuda/hopper.cuh"
#include "services/trunk/ops/cuda/linear_fragments.cuh"
#include "services/trunk/ops/cuda/linear_hopper.h"
#include "services/trunk/ops/cuda/wgmma.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kTileRows = kHopperSplitRows;
constexpr int kColumnBytes = kTileRows * 16;  // eight columns of a tile's rows
constexpr int kTokenBlockBytes = kTerms * 4 * kColumnBytes;

// A tile is 64 outputs for each of kGroups warpgroups that multiply, and kTileRows rows. As many
// steps as fit lie in shared memory.
template <int kGroupsOfTile, bool kOfCodes>
struct Tile {
  static constexpr int kGroups = kGroupsOfTile;
  static constexpr bool kCodes = kOfCodes;
  // Of the rows, summed apart.
  static constexpr int kParts = kCodes ? 2 : 1;
  static constexpr int kOutputs = kGroups * 64;
  static constexpr int kMultiplyThreads = kGroups * kWarpgroup;
  static constexpr int kNumThreads = kMultiplyThreads + kWarpgroup;
  // Of a step: 16-byte pieces of a row of weights.
  static constexpr int kWeightPieces = kStepBlocks * kBlock * (kCodes ? 1 : 2) / 16;
  static constexpr int kTokensAt = kOutputs * kWeightPieces * 16;
  static constexpr int kScalesAt = kTokensAt + kStepBlocks * kTokenBlockBytes;
  static constexpr int kStageBytes = kScalesAt + (kCodes ? kOutputs * 4 : 0);
  static constexpr int kStages = (226 << 10) / kStageBytes;
  static constexpr int kBytes = kStages * kStageBytes;
};

// Stages in turn: of each a barrier says that it is full, one that it is empty.
template <typename T>
struct Ring {
  uint32_t stages;  // shared addresses
  uint32_t full;
  uint32_t empty;
  int slot = 0;
  uint32_t parity = 0;  // of the phase in which the slot becomes full

  __device__ __forceinline__ uint32_t stage() const {
    return stages + static_cast<uint32_t>(slot * T::kStageBytes);
  }
  __device__ __forceinline__ uint32_t full_barrier() const {
    return full + static_cast<uint32_t>(slot * 8);
  }
  __device__ __forceinline__ uint32_t empty_barrier() const {
    return empty + static_cast<uint32_t>(slot * 8);
  }
  __device__ __forceinline__ void AwaitFull() const { BarrierWait(full_barrier(), parity); }
  __device__ __forceinline__ void AwaitEmpty() const { BarrierWait(empty_barrier(), parity ^ 1); }
  __device__ __forceinline__ void Next() {
    if (++slot == T::kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// What a thread that multiplies reads of stages.
template <typename T>
struct Steps {
  Ring<T> ring;
  const unsigned char* shared;
  int lane;
  int t;
  int weight_row;  // of the tile: Fragment's low one

  __device__ __forceinline__ Steps(const Ring<T>& of, const unsigned char* at, int thread)
      : ring(of),
        shared(at),
        lane(thread % kWarp),
        t(lane % 4),
        weight_row(thread / kWarp * 16 + lane / 4) {}

  // 16 bytes of the low weight row; those of the high one are eight rows further.
  __device__ __forceinline__ const uint4* WeightsAt(int piece) const {
    return reinterpret_cast<const uint4*>(shared + ring.slot * T::kStageBytes +
                                          SwizzledPiece<T::kWeightPieces>(weight_row, piece) * 16);
  }
  __device__ __forceinline__ Fragment Weights(int half) const {
    const uint4* const low = WeightsAt(half * 4 + t);
    return {low[0], low[8 * T::kWeightPieces]};
  }
  // Of the low weight row; the high one's is eight further.
  __device__ __forceinline__ const float* Scales() const {
    return reinterpret_cast<const float*>(shared + ring.slot * T::kStageBytes + T::kScalesAt) +
           weight_row;
  }
  __device__ __forceinline__ uint32_t Tokens(int half) const {
    return ring.stage() + static_cast<uint32_t>(T::kTokensAt + half * kTokenBlockBytes);
  }
  // A warp has read all it wants of a stage.
  __device__ __forceinline__ void Leave(uint32_t empty_barrier) const {
    __syncwarp();
    if (lane == 0) BarrierArrive(empty_barrier);
  }
};

// A thread's results of a tile, as Mma has them.
template <typename T>
struct TileSums {
  static constexpr int kN = kTileRows / 8 / T::kParts;
  float total[T::kParts][kN][4] = {};  // of partitions that are done
  float acc[T::kParts][kN][4] = {};    // of this one
};

template <int kN>
__device__ __forceinline__ void Join(float (&total)[kN][4], float (&acc)[kN][4]) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      total[n][i] += acc[n][i];
      acc[n][i] = 0;
    }
  }
}

// Where partitions end, unit after unit: blocks of bf16, groups of codes.
struct Partitions {
  int num_units;
  int done = 0;
  int end;

  __device__ __forceinline__ explicit Partitions(int of) : num_units(of), end(of / kPartitions) {}
  __device__ __forceinline__ bool EndBefore(int unit) {
    if (unit != end) return false;
    do {
      end = ++done * num_units / kPartitions;  // some have no unit
    } while (unit == end);
    return true;
  }
};

// Queues the products of a block, or of a part of its rows. Their order for a result is
// MultiplyBlock's. Descriptors are sums of one and a constant: each put together anew took longer
// than the product it is for (codes at 2,048 rows 449 us instead of 414, one H200).
template <int kN>
__device__ __forceinline__ void QueueProducts(float (&sum)[kN][4], const Fragment& w,
                                              uint32_t tokens_at, bool add) {
  const uint32_t first[4] = {w.low.x, w.high.x, w.low.y, w.high.y};
  const uint32_t second[4] = {w.low.z, w.high.z, w.low.w, w.high.w};
  const uint64_t tokens = WgmmaDescriptor(tokens_at, kColumnBytes);
  WgmmaBegin();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      Wgmma(sum, half == 0 ? first : second, tokens + ((term * 4 + half * 2) * kColumnBytes >> 4),
            add || half + term > 0);
    }
  }
  WgmmaCommit();
}

// Sums a tile's steps. Weights of a block are read while products of the one before it are on their
// way, which ends only where partitions join.
template <typename T>
__device__ __forceinline__ void SumBf16(int num_blocks, Steps<T>* steps, TileSums<T>* sums) {
  Partitions partitions(num_blocks);
  const auto multiply = [&](const Fragment& w, int half, int block) {
    if (partitions.EndBefore(block)) {
      WgmmaWait<0>(sums->acc[0]);
      Join(sums->total[0], sums->acc[0]);
    }
    QueueProducts(sums->acc[0], w, steps->Tokens(half), true);
    WgmmaWait<1>();  // those of the block before
  };
  uint32_t left = 0;  // the barrier of the step before
  steps->ring.AwaitFull();
  Fragment even = steps->Weights(0);
  for (int block = 0; block < num_blocks; block += kStepBlocks) {
    multiply(even, 0, block);
    if (block > 0) steps->Leave(left);
    left = steps->ring.empty_barrier();
    if (block + 1 < num_blocks) {
      const Fragment odd = steps->Weights(1);
      multiply(odd, 1, block + 1);
    }
    steps->ring.Next();
    if (block + kStepBlocks < num_blocks) {
      steps->ring.AwaitFull();
      even = steps->Weights(0);
    }
  }
  WgmmaWait<0>(sums->acc[0]);
  steps->Leave(left);
}

// The same of codes. A group is summed from zero, then scaled: one part of the rows while products
// of the other are on their way, which have all ended where the step does.
template <typename T>
__device__ __forceinline__ void SumCodes(int num_groups, Steps<T>* steps, TileSums<T>* sums) {
  constexpr int kN = TileSums<T>::kN;
  constexpr uint32_t kPartBytes = kN * 128;
  static_assert(T::kParts == 2);
  float group_sum[2][kN][4] = {};
  Partitions partitions(num_groups);
  for (int group = 0; group < num_groups; ++group) {
    steps->ring.AwaitFull();
    const float low_scale = steps->Scales()[0];
    const float high_scale = steps->Scales()[8];
    const uint4* const codes = steps->WeightsAt(steps->t);
    const uint4 low = codes[0];
    const uint4 high = codes[8 * T::kWeightPieces];
    const Fragment even = WidenBlock(low, high, 0);
    const Fragment odd = WidenBlock(low, high, 1);
    if (partitions.EndBefore(group)) {
      Join(sums->total[0], sums->acc[0]);
      Join(sums->total[1], sums->acc[1]);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      QueueProducts(group_sum[part], even, steps->Tokens(0) + part * kPartBytes, false);
      QueueProducts(group_sum[part], odd, steps->Tokens(1) + part * kPartBytes, true);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      // Those of the other part are the last two.
      if (part == 0) {
        WgmmaWait<2>(group_sum[0]);
      } else {
        WgmmaWait<0>(group_sum[1]);
      }
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        AddScaled(sums->acc[part][n], group_sum[part][n], low_scale, high_scale);
      }
    }
    steps->Leave(steps->ring.empty_barrier());
    steps->ring.Next();
  }
}

}  // namespace
}  // namespace banyan::trunk::cuda
