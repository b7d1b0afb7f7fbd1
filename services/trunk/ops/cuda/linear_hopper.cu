#include <algorithm>

#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear_fragments.cuh"
#include "services/trunk/ops/cuda/linear_hopper.h"
#include "services/trunk/ops/cuda/wgmma.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kGroupRows = kHopperSplitRows;
constexpr int kColumnBytes = kGroupRows * 16;  // eight columns of a group of rows

// x, or silu(x) * up where that is not null, to [group of rows][block][term][half][2][row][8] in
// bf16: sixteen columns of a half are the products that Mma sums at once, in MultiplyBlock's order.
__global__ void __launch_bounds__(kThreads)
    SplitRows(const float* x, const float* up, int32_t num_rows, int32_t k, uint32_t* split) {
  BeginKernel();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int num_blocks = k / kBlock;
  const auto t = static_cast<int>(i % 4);
  const int64_t unit = i / 32;  // eight rows, one block
  const auto block = static_cast<int>(unit % num_blocks);
  const auto row = static_cast<int>(unit / num_blocks * 8 + i / 4 % 8);
  if (row >= (num_rows + kGroupRows - 1) / kGroupRows * kGroupRows) return;
  const int64_t from = min(row, num_rows - 1) * int64_t{k} + block * kBlock + t * 8;
  const TokenFragment token = LoadToken<true>(x + from, up == nullptr ? nullptr : up + from, true);
  constexpr int kWords = kColumnBytes / 4;
  uint32_t* const to = split +
                       (int64_t{row / kGroupRows} * num_blocks + block) * (kTerms * 4 * kWords) +
                       row % kGroupRows * 4 + t;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    to[(term * 4 + 0) * kWords] = token.term[term].x;
    to[(term * 4 + 1) * kWords] = token.term[term].y;
    to[(term * 4 + 2) * kWords] = token.term[term].z;
    to[(term * 4 + 3) * kWords] = token.term[term].w;
  }
}

// A tile: 64 outputs for each of kGroups warpgroups, kRows rows; kStages steps in shared memory.
template <int kGroupsOfTile, int kRowsOfTile, int kStagesOfRing, int kCtas, bool kOfCodes>
struct Tile {
  static constexpr int kGroups = kGroupsOfTile;
  static constexpr int kRows = kRowsOfTile;
  static constexpr int kStages = kStagesOfRing;
  static constexpr int kCtasPerSm = kCtas;
  static constexpr bool kCodes = kOfCodes;
  static constexpr int kOutputs = kGroups * 64;
  static constexpr int kNumThreads = kGroups * kWarpgroup;
  // Addresses take registers, of which three warpgroups have fewer; one copy after the other takes
  // longer than the products of a step (H200).
  static constexpr int kCopiesAtOnce = kGroups == 3 || kCtasPerSm == 2 ? 2 : 4;
  // Of a step: 16-byte pieces of a row of weights; bytes of eight columns of x, and of a block.
  static constexpr int kWeightPieces = kStepBlocks * kBlock * (kCodes ? 1 : 2) / 16;
  static constexpr int kSumBytes = kRows * 16;
  static constexpr int kBlockBytes = kTerms * 4 * kSumBytes;
  static constexpr int kTokensAt = kOutputs * kWeightPieces * 16;
  static constexpr int kScalesAt = kTokensAt + kStepBlocks * kBlockBytes;
  static constexpr int kStageBytes = kScalesAt + (kCodes ? kOutputs * 4 : 0);
  static constexpr int kBytes = kStages * kStageBytes;
};

// As ManyRows. Copies of a step to come are queued while the products of this one are computed.
template <typename T>
__global__ void __launch_bounds__(T::kNumThreads, T::kCtasPerSm)
    HopperTiles(const __grid_constant__ LinearBatch batch) {
  constexpr int kN = T::kRows / 8;
  constexpr bool kCodes = T::kCodes;
  extern __shared__ __align__(128) unsigned char shared[];
  const int which = FindMatrix(batch, static_cast<int>(blockIdx.y));
  const LinearMatrix& matrix = batch.matrices[which];
  const int n0 = (static_cast<int>(blockIdx.y) - batch.first_cta[which]) * T::kOutputs;
  const int row0 = static_cast<int>(blockIdx.x) * T::kRows;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int num_blocks = matrix.k / kBlock;
  const int num_steps = (num_blocks + kStepBlocks - 1) / kStepBlocks;
  const int64_t weight_bytes = int64_t{matrix.k} * (kCodes ? 1 : 2);
  const auto* const weights = static_cast<const unsigned char*>(matrix.w);
  const auto* const tokens = reinterpret_cast<const unsigned char*>(batch.split) +
                             int64_t{row0 / kGroupRows} * num_blocks * (kTerms * 4 * kColumnBytes) +
                             row0 % kGroupRows * 16;

  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const auto fetch = [&](int step) {
    const uint32_t stage = shared_at + static_cast<uint32_t>(step % T::kStages * T::kStageBytes);
    if (step < num_steps) {
      // The last step may have one block alone.
      const int blocks = num_blocks - step * kStepBlocks;
      constexpr int kW = T::kWeightPieces;
#pragma unroll(T::kCopiesAtOnce)
      for (int i = thread; i < T::kOutputs * kW; i += T::kNumThreads) {
        const int row = i / kW;
        const int piece = i % kW;
        if (piece / (kW / kStepBlocks) < blocks) {
          CopyAsync(
              stage + static_cast<uint32_t>(SwizzledPiece<kW>(row, piece) * 16),
              weights + min(n0 + row, matrix.n - 1) * weight_bytes + (step * kW + piece) * 16);
        }
      }
      constexpr int kX = kStepBlocks * kTerms * 4;  // times eight columns
      const unsigned char* const from = tokens + int64_t{step} * (kX * kColumnBytes);
#pragma unroll(T::kCopiesAtOnce)
      for (int i = thread; i < kX * T::kRows; i += T::kNumThreads) {
        if (i / (kX / kStepBlocks * T::kRows) < blocks) {
          CopyAsync(stage + static_cast<uint32_t>(T::kTokensAt + i * 16),
                    from + i / T::kRows * kColumnBytes + i % T::kRows * 16);
        }
      }
      if (kCodes && thread < T::kOutputs) {
        const int64_t groups = (matrix.k + kGroupColumns - 1) / kGroupColumns;
        CopyAsync4(stage + static_cast<uint32_t>(T::kScalesAt + thread * 4),
                   matrix.scales + min(n0 + thread, matrix.n - 1) * groups + step);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  float acc[kN][4] = {};
  float total[kN][4] = {};
  const int row_of_tile = thread / kWarp * 16 + g;  // of the weights
  int partition = 0;
  int partition_end = num_blocks / kPartitions;
  const auto join = [&](int block) {
    while (block == partition_end) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[n][i] += acc[n][i];
          acc[n][i] = 0;
        }
      }
      ++partition;
      partition_end = (partition + 1) * num_blocks / kPartitions;
    }
  };
  // The order of a result's products is MultiplyBlock's.
  const auto multiply = [](float(&sum)[kN][4], const Fragment& w, uint32_t block_at, bool add) {
    const uint32_t first[4] = {w.low.x, w.high.x, w.low.y, w.high.y};
    const uint32_t second[4] = {w.low.z, w.high.z, w.low.w, w.high.w};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int term = 0; term < kTerms; ++term) {
        const auto at = static_cast<uint32_t>((term * 4 + half * 2) * T::kSumBytes);
        Wgmma(sum, half == 0 ? first : second, WgmmaDescriptor(block_at + at, T::kSumBytes),
              add || half + term > 0);
      }
    }
  };
#pragma unroll
  for (int i = 0; i < T::kStages - 1; ++i) fetch(i);
  for (int step = 0; step < num_steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(T::kStages - 2));
    // What cp.async wrote is for wgmma's eyes, too.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const int stage_at = step % T::kStages * T::kStageBytes;
    const unsigned char* const stage = shared + stage_at;
    const uint32_t tokens_at = shared_at + static_cast<uint32_t>(stage_at + T::kTokensAt);
    const int block = step * kStepBlocks;
    const bool both = block + 1 < num_blocks;
    Fragment w[kStepBlocks];
#pragma unroll
    for (int half = 0; half < kStepBlocks; ++half) {
      if constexpr (kCodes) {
        const unsigned char* const low =
            stage + SwizzledPiece<T::kWeightPieces>(row_of_tile, half * 2 + t / 2) * 16 + t % 2 * 8;
        w[half] = {Widen(*reinterpret_cast<const uint2*>(low)),
                   Widen(*reinterpret_cast<const uint2*>(low + 8 * T::kWeightPieces * 16))};
      } else {
        const unsigned char* const low =
            stage + SwizzledPiece<T::kWeightPieces>(row_of_tile, half * 4 + t) * 16;
        w[half] = {*reinterpret_cast<const uint4*>(low),
                   *reinterpret_cast<const uint4*>(low + 8 * T::kWeightPieces * 16)};
      }
    }
    if constexpr (kCodes) {
      const auto* const scales = reinterpret_cast<const float*>(stage + T::kScalesAt) + row_of_tile;
      const float low_scale = scales[0];
      const float high_scale = scales[8];
#pragma unroll
      for (int half = 0; half < kStepBlocks; ++half) {
        if (half == 1 && !both) break;
        float sum[kN][4];
        WgmmaBegin();
        multiply(sum, w[half], tokens_at + static_cast<uint32_t>(half * T::kBlockBytes), false);
        WgmmaCommit();
        if (half == 0) fetch(step + T::kStages - 1);
        join(block + half);
        WgmmaWait();
#pragma unroll
        for (int n = 0; n < kN; ++n) AddScaled(acc[n], sum[n], low_scale, high_scale);
      }
    } else {
      join(block);
      WgmmaBegin();
      multiply(acc, w[0], tokens_at, true);
      if (both) {
        if (block + 1 == partition_end) {
          WgmmaCommit();
          WgmmaWait();
          join(block + 1);
          WgmmaBegin();
        }
        multiply(acc, w[1], tokens_at + T::kBlockBytes, true);
      }
      WgmmaCommit();
      fetch(step + T::kStages - 1);
      WgmmaWait();
    }
  }
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int output = n0 + row_of_tile + i / 2 * 8;
      const int row = row0 + n * 8 + 2 * t + i % 2;
      if (output < matrix.n && row < batch.num_rows) {
        matrix.y[static_cast<int64_t>(row) * matrix.n + output] = total[n][i] + acc[n][i];
      }
    }
  }
}

// Large tiles read x and weights less often; small ones keep all multiprocessors busy.
template <bool kCodes>
using LargeTile = Tile<3, 128, 4, 1, kCodes>;
template <bool kCodes>
using MediumTile = Tile<2, 128, 4, 1, kCodes>;
template <bool kCodes>
using SmallTile = Tile<2, 64, 3, 2, kCodes>;

template <typename T>
int NumTiles(LinearBatch* batch) {
  return PlaceCtas(batch, T::kOutputs) * ((batch->num_rows + T::kRows - 1) / T::kRows);
}

template <typename T>
void LaunchTiles(LinearBatch* batch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((batch->num_rows + T::kRows - 1) / T::kRows),
                  static_cast<unsigned>(PlaceCtas(batch, T::kOutputs)));
  LaunchAlone(HopperTiles<T>, grid, T::kNumThreads, T::kBytes, stream, *batch);
}

template <bool kCodes>
void LaunchOfKind(LinearBatch* batch, int32_t num_sms, cudaStream_t stream) {
  // Times of all tiles, a medium one's being 100: H200.
  const auto rounds = [num_sms](int tiles) { return (tiles + num_sms - 1) / num_sms; };
  const int medium = rounds(NumTiles<MediumTile<kCodes>>(batch)) * 100;
  // Codes have a third set of sums in registers, which three warpgroups have no room for.
  const int large = kCodes ? medium + 1 : rounds(NumTiles<LargeTile<false>>(batch)) * 140;
  // Two at once, or one alone.
  const int small_rounds = rounds(NumTiles<SmallTile<kCodes>>(batch));
  const int small = small_rounds / 2 * 100 + small_rounds % 2 * 63;
  if (small < std::min(medium, large)) return LaunchTiles<SmallTile<kCodes>>(batch, stream);
  if (medium <= large) return LaunchTiles<MediumTile<kCodes>>(batch, stream);
  if constexpr (!kCodes) LaunchTiles<LargeTile<false>>(batch, stream);
}

template <typename T>
cudaError_t Allow() {
  return cudaFuncSetAttribute(HopperTiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              T::kBytes);
}

}  // namespace

bool HopperTilesBuilt() { return true; }

cudaError_t PrepareHopperTiles() {
  cudaError_t error = Allow<LargeTile<false>>();
  if (error == cudaSuccess) error = Allow<MediumTile<false>>();
  if (error == cudaSuccess) error = Allow<MediumTile<true>>();
  if (error == cudaSuccess) error = Allow<SmallTile<false>>();
  if (error == cudaSuccess) error = Allow<SmallTile<true>>();
  return error;
}

void SplitForHopper(LinearBatch* batch, void* split, cudaStream_t stream) {
  const LinearMatrix& like = batch->matrices[0];
  const int64_t rows = (int64_t{batch->num_rows} + kGroupRows - 1) / kGroupRows * kGroupRows;
  const int64_t threads = rows * like.k / 8;
  Launch(SplitRows, static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0, stream,
         like.x, like.up, batch->num_rows, like.k, static_cast<uint32_t*>(split));
  batch->split = static_cast<const uint4*>(split);
}

void LaunchHopperTiles(LinearBatch* batch, bool codes, int32_t num_sms, cudaStream_t stream) {
  return codes ? LaunchOfKind<true>(batch, num_sms, stream)
               : LaunchOfKind<false>(batch, num_sms, stream);
}

}  // namespace banyan::trunk::cuda
