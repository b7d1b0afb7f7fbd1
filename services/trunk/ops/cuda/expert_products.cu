#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/f16_tiles.cuh"
#include "services/trunk/ops/cuda/host_experts.h"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

// A tile has 64 pairs and 128 outputs, shared out to 2 x 2 warps of 32 x 64; columns come in steps
// of 64 through a ring in shared memory. A value is one chain over ascending columns, whatever else
// is in the tile.
constexpr int kPairs = 64;
constexpr int kOutputs = 128;
constexpr int kThreads = 128;
constexpr int kStages = 3;
constexpr int kStepCols = 64;
constexpr int kPieces = kStepCols * 2 / 16;        // of a row, 16 bytes each
constexpr int kRowsAtOnce = kThreads / kPieces;    // that the threads copy
constexpr int kPairRounds = kPairs / kRowsAtOnce;  // of them
constexpr int kOutputRounds = kOutputs / kRowsAtOnce;
constexpr int kOutputsAt = kPairs * kStepCols * 2;
constexpr int kStageBytes = kOutputsAt + kOutputs * kStepCols * 2;
constexpr int kSharedBytes = kStages * kStageBytes;
constexpr int kM = 2;  // products of 16 pairs of a warp
constexpr int kN = 8;  // of 8 outputs
// Of a warp's outputs those of gate come first, then as many of up.
constexpr int kGateN = kN / 2;
constexpr int kWidthOfTile = kOutputs / 2;

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

// acc[m][n] += pairs x outputs over `cols` columns.
__device__ __forceinline__ void Multiply(const Rows<kPairRounds>& pairs,
                                         const Rows<kOutputRounds>& outputs, int cols,
                                         unsigned char* shared, float (&acc)[kM][kN][4]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int first_pair = warp / 2 * (kM * 16);
  const int first_output = warp % 2 * (kN * 8);
  const auto shared_at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int steps = (cols + kStepCols - 1) / kStepCols;
  const auto fetch = [&](int step) {
    if (step < steps) {
      const uint32_t stage = shared_at + static_cast<uint32_t>(step % kStages * kStageBytes);
      pairs.Fetch(stage, thread, step * kStepCols, cols);
      outputs.Fetch(stage + kOutputsAt, thread, step * kStepCols, cols);
    }
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  for (int step = 0; step < steps; ++step) {
    AwaitCopies<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    const unsigned char* const stage = shared + step % kStages * kStageBytes;
#pragma unroll
    for (int k = 0; k < kStepCols / 16; ++k) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        LoadTiles(a[m], stage + PieceAt(first_pair + m * 16 + lane % 16, k * 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t b[4];
        const int row = first_output + n * 8 + lane / 16 * 8 + lane % 8;
        LoadTiles(b, stage + kOutputsAt + PieceAt(row, k * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Mma(acc[m][n], a[m], b[0], b[1]);
          Mma(acc[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
}

// Of a tile of pairs: its expert, and its first pair among that one's.
struct PairTile {
  int expert = 0;
  int first = 0;
};
__device__ __forceinline__ PairTile FindTile(const ExpertBatch& batch, int tile) {
  PairTile found;
  while (true) {
    const int tiles = (batch.experts[found.expert].num_pairs + kPairs - 1) / kPairs;
    if (tile < tiles) break;
    tile -= tiles;
    ++found.expert;
  }
  found.first = tile * kPairs;
  return found;
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
  Rows<kOutputRounds> outputs;
#pragma unroll
  for (int i = 0; i < kOutputRounds; ++i) {
    const int at = thread / kPieces + i * kRowsAtOnce;
    const int of_warp = at % (kN * 8);
    const int col = first_col + at / (kN * 8) * (kGateN * 8) + of_warp % (kGateN * 8);
    const Bf16Matrix& matrix = of_warp < kGateN * 8 ? expert.gate : expert.up;
    outputs.present[i] = col < matrix.rows;
    outputs.row[i] =
        matrix.data + int64_t{outputs.present[i] ? col : 0} * matrix.stride + piece * 8;
  }
  float acc[kM][kN][4] = {};
  Multiply(pairs, outputs, batch.hidden_size, shared, acc);

  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = warp / 2 * (kM * 16) + m * 16 + half * 8 + lane / 4;
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

// Of one expert, whose rows are all different.
__global__ void __launch_bounds__(kThreads)
    DownKernel(const __grid_constant__ ExpertBatch batch, int which) {
  extern __shared__ __align__(128) unsigned char shared[];
  const ExpertBatch::Expert& expert = batch.experts[which];
  const int thread = static_cast<int>(threadIdx.x);
  const int piece = thread % kPieces;
  const int first_output = static_cast<int>(blockIdx.x) * kOutputs;
  const int first = static_cast<int>(blockIdx.y) * kPairs;
  const int num_pairs = min(kPairs, expert.num_pairs - first);
  const int first_pair = expert.first_pair + first;
  Rows<kPairRounds> pairs;
#pragma unroll
  for (int i = 0; i < kPairRounds; ++i) {
    const int at = thread / kPieces + i * kRowsAtOnce;
    pairs.present[i] = at < num_pairs;
    pairs.row[i] = expert.products +
                   int64_t{first + (pairs.present[i] ? at : 0)} * batch.product_stride + piece * 8;
  }
  Rows<kOutputRounds> outputs;
#pragma unroll
  for (int i = 0; i < kOutputRounds; ++i) {
    const int output = first_output + thread / kPieces + i * kRowsAtOnce;
    outputs.present[i] = output < expert.down.rows;
    outputs.row[i] = expert.down.data +
                     int64_t{outputs.present[i] ? output : 0} * expert.down.stride + piece * 8;
  }
  float acc[kM][kN][4] = {};
  Multiply(pairs, outputs, expert.down.cols, shared, acc);

  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = warp / 2 * (kM * 16) + m * 16 + half * 8 + lane / 4;
      if (pair >= num_pairs) continue;
      const float weight = batch.pair_weights[first_pair + pair];
      const int output = first_output + warp % 2 * (kN * 8) + lane % 4 * 2;
      float* const row =
          batch.hidden + int64_t{batch.pair_rows[first_pair + pair]} * batch.hidden_size + output;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        if (output + n * 8 >= batch.hidden_size) continue;
        auto* const sum = reinterpret_cast<float2*>(row + n * 8);
        const float* const y = acc[m][n] + half * 2;
        *sum = {fmaf(weight, y[0], sum->x), fmaf(weight, y[1], sum->y)};
      }
    }
  }
}

template <typename Kernel>
cudaError_t AllowShared(Kernel* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
}

unsigned Tiles(int count, int of_tile) {
  return static_cast<unsigned>((count + of_tile - 1) / of_tile);
}

}  // namespace

cudaError_t ExpertGateUp(const ExpertBatch& batch, cudaStream_t stream) {
  unsigned tiles = 0;
  for (int i = 0; i < batch.num_experts; ++i) tiles += Tiles(batch.experts[i].num_pairs, kPairs);
  if (tiles == 0) return cudaSuccess;
  static const cudaError_t allowed = AllowShared(GateUpKernel);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(Tiles(batch.product_stride, kWidthOfTile), tiles);
  return LaunchAlone(GateUpKernel, grid, kThreads, kSharedBytes, stream, batch);
}

cudaError_t ExpertDown(const ExpertBatch& batch, cudaStream_t stream) {
  static const cudaError_t allowed = AllowShared(DownKernel);
  if (allowed != cudaSuccess) return allowed;
  for (int i = 0; i < batch.num_experts; ++i) {
    const dim3 grid(Tiles(batch.hidden_size, kOutputs), Tiles(batch.experts[i].num_pairs, kPairs));
    const cudaError_t error =
        LaunchAlone(DownKernel, grid, kThreads, kSharedBytes, stream, batch, i);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace banyan::trunk::cuda
