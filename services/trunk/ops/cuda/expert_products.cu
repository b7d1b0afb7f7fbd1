#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/f16_tiles.cuh"
#include "services/trunk/ops/cuda/host_experts.h"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

// A tile has 64 pairs and some outputs, shared out to 2 x 2 warps; columns come in steps of 64
// through a ring in shared memory. A value is one chain over ascending columns, whatever else is in
// the tile.
constexpr int kPairs = 64;
constexpr int kThreads = 128;
constexpr int kStages = 6;
constexpr int kStepCols = 64;
constexpr int kPieces = kStepCols * 2 / 16;        // of a row, 16 bytes each
constexpr int kRowsAtOnce = kThreads / kPieces;    // that the threads copy
constexpr int kPairRounds = kPairs / kRowsAtOnce;  // of them
constexpr int kOutputsAt = kPairs * kStepCols * 2;
constexpr int kM = 2;  // products of 16 pairs of a warp

template <int kTileOutputs>
struct Shape {
  static constexpr int kOutputs = kTileOutputs;
  static constexpr int kRounds = kOutputs / kRowsAtOnce;
  static constexpr int kN = kOutputs / 16;  // products of 8 outputs of a warp
  static constexpr int kStageBytes = kOutputsAt + kOutputs * kStepCols * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes;
};
// A warp's outputs of gate come first, then as many of up. Enough tiles for all multiprocessors are
// made of eight experts.
using GateUp = Shape<64>;
constexpr int kGateN = GateUp::kN / 2;
constexpr int kWidthOfTile = GateUp::kOutputs / 2;
using Down = Shape<32>;

// 16 bytes on their way to shared memory, zeros where they are absent.
__device__ __forceinline__ void CopyOrClear(uint32_t shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(present ? 16 : 0)
               : "memory");
}

// Eight rows' piece of the same number lie in all banks once.
__device__ __forceinline__ int PieceAt(int row, int piece) {
  return (row * kPieces + (piece ^ (row % kPieces))) * 16;
}

// What a thread copies of each step: one piece of some rows.
template <int kRounds>
struct Rows {
  const uint16_t* row[kRounds];  // from the thread's first column on
  bool present[kRounds];

  __device__ __forceinline__ void Fetch(uint32_t stage, int thread, int col, int cols) const {
    const int piece = thread % kPieces;
    const bool inside = col + piece * 8 < cols;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int at = thread / kPieces + i * kRowsAtOnce;
      const bool copied = present[i] && inside;
      CopyOrClear(stage + static_cast<uint32_t>(PieceAt(at, piece)), copied ? row[i] + col : row[i],
                  copied);
    }
  }
};

// Which pairs and outputs of the tile a warp has.
struct WarpPart {
  int first_pair = 0;
  int first_output = 0;
};
template <int kN>
__device__ __forceinline__ WarpPart PartOf(int warp) {
  return {warp / 2 * (kM * 16), warp % 2 * (kN * 8)};
}

// acc[m][n] += pairs x outputs over the columns of a step.
template <int kN>
__device__ __forceinline__ void MultiplyStep(const unsigned char* stage, const WarpPart& part,
                                             int lane, float (&acc)[kM][kN][4]) {
#pragma unroll
  for (int k = 0; k < kStepCols / 16; ++k) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      LoadTiles(a[m], stage + PieceAt(part.first_pair + m * 16 + lane % 16, k * 2 + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      const int row = part.first_output + n * 8 + lane / 16 * 8 + lane % 8;
      LoadTiles(b, stage + kOutputsAt + PieceAt(row, k * 2 + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        Mma(acc[m][n], a[m], b[0], b[1]);
        Mma(acc[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

__device__ __forceinline__ int StepsOf(int cols) { return (cols + kStepCols - 1) / kStepCols; }

// Of a tile of pairs: its expert, and its first pair among that one's.
struct PairTile {
  int expert = 0;
  int first = 0;
};
__host__ __device__ __forceinline__ int TilesOf(const ExpertBatch::Expert& expert) {
  return (expert.num_pairs + kPairs - 1) / kPairs;
}
__device__ __forceinline__ PairTile FindTile(const ExpertBatch& batch, int tile) {
  PairTile found;
  while (tile >= TilesOf(batch.experts[found.expert])) {
    tile -= TilesOf(batch.experts[found.expert++]);
  }
  found.first = tile * kPairs;
  return found;
}
__device__ __forceinline__ PairTile TileAfter(const ExpertBatch& batch, const PairTile& tile) {
  if (tile.first + kPairs < batch.experts[tile.expert].num_pairs) {
    return {tile.expert, tile.first + kPairs};
  }
  return {tile.expert + 1, 0};
}

__global__ void __launch_bounds__(kThreads)
    GateUpKernel(const __grid_constant__ ExpertBatch batch) {
  extern __shared__ __align__(128) unsigned char shared[];
  const PairTile tile = FindTile(batch, static_cast<int>(blockIdx.y));
  const ExpertBatch::Expert& expert = batch.experts[tile.expert];
  const int thread = static_cast<int>(threadIdx.x);
  const int piece = thread % kPieces;
  const int first_col = static_cast<int>(blockIdx.x) * kWidthOfTile;
  const int num_pairs = min(kPairs, expert.num_pairs - tile.first);
  const int first_pair = expert.first_pair + tile.first;
  Rows<kPairRounds> pairs;
#pragma unroll
  for (int i = 0; i < kPairRounds; ++i) {
    const int at = thread / kPieces + i * kRowsAtOnce;
    pairs.present[i] = at < num_pairs;
    const int64_t row = pairs.present[i] ? batch.pair_rows[first_pair + at] : 0;
    pairs.row[i] = batch.rows + row * batch.hidden_size + piece * 8;
  }
  Rows<GateUp::kRounds> outputs;
#pragma unroll
  for (int i = 0; i < GateUp::kRounds; ++i) {
    const int at = thread / kPieces + i * kRowsAtOnce;
    const int of_warp = at % (GateUp::kN * 8);
    const int col = first_col + at / (GateUp::kN * 8) * (kGateN * 8) + of_warp % (kGateN * 8);
    const Bf16Matrix& matrix = of_warp < kGateN * 8 ? expert.gate : expert.up;
    outputs.present[i] = col < matrix.rows;
    outputs.row[i] =
        matrix.data + int64_t{outputs.present[i] ? col : 0} * matrix.stride + piece * 8;
  }
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const WarpPart part = PartOf<GateUp::kN>(warp);
  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int steps = StepsOf(batch.hidden_size);
  const auto fetch = [&](int step) {
    if (step < steps) {
      const auto stage = shared_at + static_cast<uint32_t>(step % kStages * GateUp::kStageBytes);
      pairs.Fetch(stage, thread, step * kStepCols, batch.hidden_size);
      outputs.Fetch(stage + kOutputsAt, thread, step * kStepCols, batch.hidden_size);
    }
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  float acc[kM][GateUp::kN][4] = {};
  for (int step = 0; step < steps; ++step) {
    AwaitCopies<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    MultiplyStep(shared + step % kStages * GateUp::kStageBytes, part, lane, acc);
  }

#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = part.first_pair + m * 16 + half * 8 + lane / 4;
      if (pair >= num_pairs) continue;
      uint16_t* const row = expert.products + int64_t{tile.first + pair} * batch.product_stride +
                            first_col + warp % 2 * (kGateN * 8) + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kGateN; ++n) {
        const float* const gate = acc[m][n] + half * 2;
        const float* const up = acc[m][n + kGateN] + half * 2;
        *reinterpret_cast<uint32_t*>(row + n * 8) =
            RoundToBf16(Silu(gate[0]) * up[0], Silu(gate[1]) * up[1]);
      }
    }
  }
}

// What a thread copies of a tile of one expert's pairs and outputs.
struct DownRows {
  Rows<kPairRounds> pairs;
  Rows<Down::kRounds> outputs;

  __device__ __forceinline__ void Aim(const ExpertBatch& batch, const PairTile& tile,
                                      int first_output, int thread) {
    const ExpertBatch::Expert& expert = batch.experts[tile.expert];
    const int piece = thread % kPieces;
#pragma unroll
    for (int i = 0; i < kPairRounds; ++i) {
      const int pair = tile.first + thread / kPieces + i * kRowsAtOnce;
      pairs.present[i] = pair < expert.num_pairs;
      pairs.row[i] =
          expert.products + int64_t{pairs.present[i] ? pair : 0} * batch.product_stride + piece * 8;
    }
#pragma unroll
    for (int i = 0; i < Down::kRounds; ++i) {
      const int output = first_output + thread / kPieces + i * kRowsAtOnce;
      outputs.present[i] = output < expert.down.rows;
      outputs.row[i] = expert.down.data +
                       int64_t{outputs.present[i] ? output : 0} * expert.down.stride + piece * 8;
    }
  }
};

// A CTA has its outputs of every pair of the batch, so that a row's sum grows in the order of the
// experts. Of one expert all rows are different.
__global__ void __launch_bounds__(kThreads)
    DownKernel(const __grid_constant__ ExpertBatch batch, int num_tiles) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const WarpPart part = PartOf<Down::kN>(thread / kWarp);
  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int first_output = static_cast<int>(blockIdx.x) * Down::kOutputs;
  const int cols = batch.experts[0].down.cols;
  const int steps_of_tile = StepsOf(cols);
  const int steps = num_tiles * steps_of_tile;

  // Copies run ahead of products, into the tiles behind too.
  PairTile fetched = FindTile(batch, 0);
  int fetched_step = 0;
  DownRows rows;
  rows.Aim(batch, fetched, first_output, thread);
  const auto fetch = [&](int step) {
    if (step < steps) {
      if (fetched_step == steps_of_tile) {
        fetched = TileAfter(batch, fetched);
        fetched_step = 0;
        rows.Aim(batch, fetched, first_output, thread);
      }
      const auto stage = shared_at + static_cast<uint32_t>(step % kStages * Down::kStageBytes);
      const int col = fetched_step++ * kStepCols;
      rows.pairs.Fetch(stage, thread, col, cols);
      rows.outputs.Fetch(stage + kOutputsAt, thread, col, cols);
    }
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  PairTile tile = FindTile(batch, 0);
  for (int step = 0; step < steps; tile = TileAfter(batch, tile)) {
    const ExpertBatch::Expert& expert = batch.experts[tile.expert];
    float2* sums[kM][2];  // null: no such pair
    float2 old[kM][2][Down::kN];
    float weights[kM][2];
    const int output = first_output + part.first_output + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pair = tile.first + part.first_pair + m * 16 + half * 8 + lane / 4;
        sums[m][half] = nullptr;
        if (pair >= expert.num_pairs) continue;
        const int at = expert.first_pair + pair;
        weights[m][half] = batch.pair_weights[at];
        sums[m][half] = reinterpret_cast<float2*>(
            batch.hidden + int64_t{batch.pair_rows[at]} * batch.hidden_size + output);
#pragma unroll
        for (int n = 0; n < Down::kN; ++n) {
          if (output + n * 8 < batch.hidden_size) old[m][half][n] = sums[m][half][n * 4];
        }
      }
    }
    float acc[kM][Down::kN][4] = {};
    for (int end = step + steps_of_tile; step < end; ++step) {
      AwaitCopies<kStages - 2>();
      __syncthreads();
      fetch(step + kStages - 1);
      MultiplyStep(shared + step % kStages * Down::kStageBytes, part, lane, acc);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (sums[m][half] == nullptr) continue;
        const float weight = weights[m][half];
#pragma unroll
        for (int n = 0; n < Down::kN; ++n) {
          if (output + n * 8 >= batch.hidden_size) continue;
          const float* const y = acc[m][n] + half * 2;
          const float2 sum = old[m][half][n];
          sums[m][half][n * 4] = {fmaf(weight, y[0], sum.x), fmaf(weight, y[1], sum.y)};
        }
      }
    }
    __syncthreads();  // the next expert's threads read these sums
  }
}

template <typename Kernel>
cudaError_t AllowShared(Kernel* kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

int Tiles(int count, int of_tile) { return (count + of_tile - 1) / of_tile; }

int PairTiles(const ExpertBatch& batch) {
  int tiles = 0;
  for (int i = 0; i < batch.num_experts; ++i) tiles += TilesOf(batch.experts[i]);
  return tiles;
}

}  // namespace

cudaError_t ExpertGateUp(const ExpertBatch& batch, cudaStream_t stream) {
  const int tiles = PairTiles(batch);
  if (tiles == 0) return cudaSuccess;
  static const cudaError_t allowed = AllowShared(GateUpKernel, GateUp::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(static_cast<unsigned>(Tiles(batch.product_stride, kWidthOfTile)),
                  static_cast<unsigned>(tiles));
  return LaunchAlone(GateUpKernel, grid, kThreads, GateUp::kSharedBytes, stream, batch);
}

cudaError_t ExpertDown(const ExpertBatch& batch, cudaStream_t stream) {
  const int tiles = PairTiles(batch);
  if (tiles == 0) return cudaSuccess;
  static const cudaError_t allowed = AllowShared(DownKernel, Down::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(static_cast<unsigned>(Tiles(batch.hidden_size, Down::kOutputs)));
  return LaunchAlone(DownKernel, grid, kThreads, Down::kSharedBytes, stream, batch, tiles);
}

}  // namespace banyan::trunk::cuda
