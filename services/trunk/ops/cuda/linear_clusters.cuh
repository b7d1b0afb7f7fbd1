// Products over few rows by clusters of CTAs that share out the columns: compute capability 9.0 on.
// Included by linear.cu alone.
//
// A CTA reads and splits the part of x that its partitions want, and sends their sums to the CTA of
// the cluster whose outputs they are; sums and their order are those of linear_few_rows.cuh. No
// barrier of a CTA is in the way of weights, several tiles of which are under way: this is for
// codes, of which a tile is half the bytes of one of bf16.
#pragma once

#include "services/trunk/ops/cuda/cluster.cuh"
#include "services/trunk/ops/cuda/hopper.cuh"
#include "services/trunk/ops/cuda/linear_few_rows.cuh"

namespace banyan::trunk::cuda {
namespace {

// kCtas CTAs: a tile is 16 outputs for each. Of a CTA's warps kPartitionsOfCta follow each other
// over the columns of 16 outputs, those of the next 16 come then.
template <int kCtasOfCluster, int kColumnsOfPartition>
struct Cluster {
  static constexpr int kCtas = kCtasOfCluster;
  static constexpr int kOutputs = 16 * kCtas;
  static constexpr int kPartitionsOfCta = kPartitions / kCtas;
  static constexpr int kColumns = kColumnsOfPartition;
  static constexpr int kColumnsOfCta = kPartitionsOfCta * kColumns;
  static constexpr int kInputs = kPartitions * kColumns;
};

// Where the partitions of a CTA's outputs meet, two tiles in turn; as Mma has them.
template <int kN>
struct Meeting {
  float4 of[2][kPartitions][kN][kWarp];
  uint64_t arrived[2];  // barriers

  static constexpr uint32_t kTileBytes = sizeof(of) / 2;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// What a lane reads of rows staged with room for 8 kN: by volatile loads, which the compiler leaves
// where they are instead of keeping all of x in registers that there are not.
template <int kN>
class StagedRows {
 public:
  __device__ __forceinline__ StagedRows(const uint4* staged, int rows, int g, int t) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      // Beyond the last row: any will do, its results are dropped.
      at_[n] = SharedAddress(staged + StagedAt(8 * kN, 0, 0, min(n * 8 + g, rows - 1), t));
    }
  }
  __device__ __forceinline__ void Load(int block, TokenFragment (&tokens)[kN]) const {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int term = 0; term < kTerms; ++term) {
        const auto offset =
            static_cast<uint32_t>(StagedAt(8 * kN, block, term, 0, 0) * sizeof(uint4));
        uint4& v = tokens[n].term[term];
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(at_[n] + offset)
                     : "memory");
      }
    }
  }

 private:
  uint32_t at_[kN];
};

// A CTA's way through its cluster's tiles, of which it adds up 16 outputs each.
template <typename C, int kN>
class ClusterRun {
 public:
  __device__ __forceinline__ ClusterRun(const Batch& batch, Meeting<kN>* meeting, uint4* staged)
      : batch_(batch),
        meeting_(meeting),
        staged_(staged),
        rank_(ClusterRank()),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        tile_(static_cast<int>(blockIdx.x) / C::kCtas) {
    if (threadIdx.x == 0) {
      for (uint64_t& barrier : meeting->arrived) BarrierInit(SharedAddress(&barrier), 1);
      BarriersInitialized();
    }
    ClusterArrive();
  }

  // Those from where it is up to `end`. Weights are on their way kAhead tiles before they are used.
  template <typename Source, int kAhead>
  __device__ __forceinline__ void Tiles(int end) {
    if (tile_ >= end) return;
    constexpr int kUnits = C::kColumns / (kBlock * Source::kBlocks);
    const int step = static_cast<int>(gridDim.x) / C::kCtas;
    const int part = warp_ % C::kPartitionsOfCta;
    const int owner = warp_ / C::kPartitionsOfCta;  // of this warp's outputs
    const int partition = rank_ * C::kPartitionsOfCta + part;
    const int g = lane_ / 4;
    const int t = lane_ % 4;
    Source source;
    const auto enter = [&](int tile) {
      const int which = FindMatrix(batch_, tile);
      source.Enter(batch_.matrices[which],
                   (tile - batch_.first_cta[which]) * C::kOutputs + owner * 16, g, t);
    };
    typename Source::Held w[kAhead][kUnits];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (tile_ + i * step >= end) break;
      enter(tile_ + i * step);
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        source.LoadWeights(partition * kUnits + unit, &w[i][unit]);
      }
      source.template LoadScales<kUnits>(partition * kUnits, w[i]);
    }
    Begin();
    const StagedRows<kN> rows(staged_ + StagedAt(8 * kN, part * kUnits * Source::kBlocks, 0, 0, 0),
                              batch_.num_rows, g, t);
    // A tile whose weights are here; false after the last.
    const auto multiply = [&](typename Source::Held(&weights)[kUnits]) {
      const bool more = tile_ + kAhead * step < end;
      if (more) enter(tile_ + kAhead * step);
      float acc[1][kN][4] = {};
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        MultiplyUnit<1, kN>(acc, {weights[unit]}, [&](int b, TokenFragment(&tokens)[kN]) {
          rows.Load(unit * Source::kBlocks + b, tokens);
        });
        if (more) source.LoadWeights(partition * kUnits + unit, &weights[unit]);
      }
      if (more) source.template LoadScales<kUnits>(partition * kUnits, weights);
      ClusterWait();  // all have added up the tile before the last
      const int turn = count_ % 2;
      const uint32_t to = OfRank(SharedAddress(&meeting_->of[turn][partition][0][lane_]), owner);
      const uint32_t barrier = OfRank(SharedAddress(&meeting_->arrived[turn]), owner);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        Send(to + static_cast<uint32_t>(n * kWarp * sizeof(float4)), acc[0][n], barrier);
      }
      if (count_ > 0) AddUp();
      ClusterArrive();
      last_tile_ = tile_;
      ++count_;
      tile_ += step;
      return tile_ < end;
    };
    if constexpr (kAhead == 1) {
      while (multiply(w[0])) {
      }
    } else {
      static_assert(kAhead == 2);
      while (multiply(w[0]) && multiply(w[1])) {
      }
    }
  }

  __device__ __forceinline__ void End() {
    AddUp();
    ClusterWait();
  }

 private:
  // Once: x may be in the making until then.
  __device__ __forceinline__ void Begin() {
    if (count_ > 0) return;
    AwaitOthers();
    constexpr int kPieces = C::kColumnsOfCta / 8;
    constexpr int kRowsAtOnce = kFewThreads / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    const int first_row = static_cast<int>(threadIdx.x) / kPieces;
    const LinearMatrix& like = batch_.matrices[0];
    const float* const x = like.x + rank_ * C::kColumnsOfCta + piece * 8;
    // As many loads at once as there are registers for: behind weights on their way each wait is
    // long.
#pragma unroll 4
    for (int i = 0; i < 8 * kN / kRowsAtOnce; ++i) {
      const int row = i * kRowsAtOnce + first_row;
      const bool present = row < batch_.num_rows;
      const TokenFragment token = LoadToken<false>(x + row * int64_t{like.k}, nullptr, present);
      if (present) StageToken(token, 8 * kN, row, piece, staged_);
    }
    __syncthreads();
  }

  // This CTA's outputs of the tile that was last multiplied before the one in hand.
  __device__ __forceinline__ void AddUp() {
    const int turn = (count_ - 1) % 2;
    const int at = static_cast<int>(threadIdx.x);
    if (at >= kN * kWarp * 4) return;
    const uint32_t barrier = SharedAddress(&meeting_->arrived[turn]);
    if (at == 0) BarrierExpect(barrier, Meeting<kN>::kTileBytes);
    BarrierWait(barrier, static_cast<uint32_t>((count_ - 1) / 2 % 2));
    const float* const from = &meeting_->of[turn][0][0][0].x + at;
    float total = 0;
#pragma unroll
    for (int p = 0; p < kPartitions; ++p) total += from[p * kN * kWarp * 4];
    const int which = FindMatrix(batch_, last_tile_);
    const LinearMatrix& matrix = batch_.matrices[which];
    const int value = at % 4;
    const int lane = at / 4 % kWarp;
    const int output = (last_tile_ - batch_.first_cta[which]) * C::kOutputs + rank_ * 16 +
                       lane / 4 + value / 2 * 8;
    const int row = at / (kWarp * 4) * 8 + lane % 4 * 2 + value % 2;
    if (row < batch_.num_rows && output < matrix.n) {
      matrix.y[static_cast<int64_t>(row) * matrix.n + output] = total;
    }
  }

  const Batch& batch_;
  Meeting<kN>* const meeting_;
  uint4* const staged_;
  const int rank_;
  const int warp_;
  const int lane_;
  int tile_;
  int last_tile_ = 0;
  int count_ = 0;  // of tiles multiplied
};

#endif

// Tiles of bf16 come first. Up to 8 kN rows.
template <typename C, int kN>
__global__ void __launch_bounds__(kFewThreads, 1)
    FewRowsByClusters(const __grid_constant__ Batch batch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  LetNextStart();
  __shared__ __align__(16) Meeting<kN> meeting;
  extern __shared__ __align__(16) uint4 staged[];
  ClusterRun<C, kN> run(batch, &meeting, staged);
  run.template Tiles<Bf16Source, 1>(batch.first_cta[batch.num_bf16]);
  run.template Tiles<CodeSource, C::kColumns == 128 ? 2 : 1>(batch.first_cta[batch.num_matrices]);
  run.End();
#endif
}

}  // namespace
}  // namespace banyan::trunk::cuda
