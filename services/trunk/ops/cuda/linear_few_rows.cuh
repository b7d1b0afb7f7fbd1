// Products over so few rows that reading the weights is what takes the time. Included by linear.cu
// alone.
#pragma once

#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear_fragments.cuh"

namespace banyan::trunk::cuda {
namespace {

// Rows of x, split, in shared memory, in the order in which lanes multiply them: [block][term][room
// for rows][4] of 16 bytes.
__device__ __forceinline__ int StagedAt(int room, int block, int term, int row, int t) {
  return (block * kTerms + term) * (4 * room) + row * 4 + t;
}

__device__ __forceinline__ void StageToken(const TokenFragment& token, int room, int row, int piece,
                                           uint4* staged) {
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    staged[StagedAt(room, piece / 4, term, row, piece % 4)] = token.term[term];
  }
}

// All threads at once: one wait for memory, not one for each block.
template <bool kSwiglu>
__device__ __forceinline__ void StageRows(const LinearMatrix& matrix, int row0, int rows,
                                          uint4* staged) {
  const int pieces = matrix.k / 8;
  const float* const up = kSwiglu ? matrix.up : nullptr;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < pieces * rows; i += kFewThreads) {
    const int row = i / pieces;
    const int piece = i % pieces;
    const int64_t from = (row0 + row) * int64_t{matrix.k} + piece * 8;
    StageToken(LoadToken<kSwiglu>(matrix.x + from, up == nullptr ? nullptr : up + from, true), rows,
               row, piece, staged);
  }
}

// Beyond the last row: any will do, its results are dropped. Zeros would be a branch for each load.
__device__ __forceinline__ TokenFragment StagedToken(const uint4* staged, int rows, int block,
                                                     int row, int t) {
  TokenFragment token;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    token.term[term] = staged[StagedAt(rows, block, term, min(row, rows - 1), t)];
  }
  return token;
}

// x is the same for all tiles of a CTA. Where a warp has it from:
enum class Rows {
  kAnew,    // global memory, split for every tile
  kStaged,  // shared memory, split once by all threads
  kHeld     // registers, split once: partitions of up to kAhead units
};

// Where the partitions of a tile meet: two in turn, if they fit, so that one barrier does.
template <int kN>
struct Partials {
  static constexpr int kTurns = kN <= 2 ? 2 : 1;
  float of[kTurns][kPartitions][kN * 4][kWarp];
};

// Adds up what the warps have of a tile, outputs from n0 on, and stores it. All threads.
template <int kN>
__device__ __forceinline__ void JoinPartitions(const float (&acc)[1][kN][4],
                                               float (&partial)[kPartitions][kN * 4][kWarp],
                                               int row0, int rows, int n0, int n, float* y) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) partial[warp][i * 4 + e][lane] = acc[0][i][e];
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kN * 4 * kWarp; at += kFewThreads) {
    // Neighbouring threads take neighbouring outputs of the same row.
    const int output = at % 16;
    const int row = at / 16;
    if (row >= rows) break;
    const int value = row / 8 * 4 + output / 8 * 2 + row % 2;
    const int owner = (output % 8) * 4 + row % 8 / 2;
    float total = 0;
#pragma unroll
    for (int p = 0; p < kPartitions; ++p) total += partial[p][value][owner];
    if (n0 + output < n) y[static_cast<int64_t>(row0 + row) * n + n0 + output] = total;
  }
}

// A CTA: tiles of 16 outputs and 8 kN rows, one after the other; a warp: one partition of the
// columns. Weights are read once, kAhead units before they are used, straight into the registers
// of the product; those of the next tile are on their way while the partitions of this one are
// joined.
template <typename Source, int kN, int kAhead, Rows kRows, bool kSwiglu>
__device__ __forceinline__ void FewRowsTiles(const Batch& batch, int tile, int num_tiles, int step,
                                             Partials<kN>* partials, uint4* staged) {
  const int row0 = static_cast<int>(blockIdx.y) * 8 * kN;
  const int rows = min(8 * kN, batch.num_rows - row0);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  constexpr int kBlocks = Source::kBlocks;
  const LinearMatrix& like = batch.matrices[0];
  const int num_units = like.k / (kBlock * kBlocks);  // the same in all
  const int begin = warp * num_units / kPartitions;
  const int end = (warp + 1) * num_units / kPartitions;

  int which = 0;
  int n0 = 0;
  Source source;
  const auto enter = [&] {
    which = FindMatrix(batch, tile);
    n0 = (tile - batch.first_cta[which]) * 16;
    source.Enter(batch.matrices[which], n0, g, t);
  };
  typename Source::Held w[kAhead][1];
  const auto load = [&](int unit, typename Source::Held(&to)[1]) {
    source.LoadWeights(unit, to);
    source.template LoadScales<1>(unit, to);
  };
  enter();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i < end) load(begin + i, w[i]);
  }
  AwaitOthers();  // weights are on their way, x may still be in the making
  const int64_t lane_x = (row0 + g) * int64_t{like.k} + t * 8;
  const float* const x = like.x + lane_x;
  const float* const up = kSwiglu && like.up != nullptr ? like.up + lane_x : nullptr;
  TokenFragment held[kRows == Rows::kHeld ? kAhead : 1][kBlocks][kN];
  const auto load_tokens = [&](int block, TokenFragment(&tokens)[kN], bool present) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const int64_t from = n * 8 * int64_t{like.k} + block * kBlock;
      tokens[n] = LoadToken<kSwiglu>(x + from, kSwiglu && up != nullptr ? up + from : nullptr,
                                     present && n * 8 + g < rows);
    }
  };
  if constexpr (kRows == Rows::kHeld) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        load_tokens((begin + i) * kBlocks + b, held[i][b], begin + i < end);
      }
    }
  }
  if constexpr (kRows == Rows::kStaged) {
    StageRows<kSwiglu>(like, row0, rows, staged);
    __syncthreads();
  }
  int turn = 0;
  while (true) {
    float acc[1][kN][4] = {};
    const auto multiply = [&](int unit, int i) {
      MultiplyUnit<1, kN>(acc, w[i], [&](int b, TokenFragment(&tokens)[kN]) {
        if constexpr (kRows == Rows::kHeld) {
#pragma unroll
          for (int n = 0; n < kN; ++n) tokens[n] = held[i][b][n];
        } else if constexpr (kRows == Rows::kStaged) {
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            tokens[n] = StagedToken(staged, rows, unit * kBlocks + b, n * 8 + g, t);
          }
        } else {
          load_tokens(unit * kBlocks + b, tokens, true);
        }
      });
    };
    int unit = begin;
    if constexpr (kRows != Rows::kHeld) {
      for (; unit + kAhead < end; unit += kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          multiply(unit + i, i);
          if (unit + i + kAhead < end) load(unit + i + kAhead, w[i]);
        }
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
      if (unit + i < end) multiply(unit + i, i);
      if (more && begin + i < end) load(begin + i, w[i]);
    }
    auto& partial = partials->of[turn];
    if (Partials<kN>::kTurns == 1) __syncthreads();  // the tile before this one is joined
    JoinPartitions<kN>(acc, partial, row0, rows, done_n0, n, y);
    turn = (turn + 1) % Partials<kN>::kTurns;
    if (!more) return;
  }
}

template <typename Source, int kN, int kAhead, int kCtasPerSm, Rows kRows, bool kSwiglu>
__global__ void __launch_bounds__(kFewThreads, kCtasPerSm)
    FewRows(const __grid_constant__ Batch batch) {
  LetNextStart();
  __shared__ Partials<kN> partials;
  extern __shared__ __align__(16) uint4 staged[];
  FewRowsTiles<Source, kN, kAhead, kRows, kSwiglu>(batch, static_cast<int>(blockIdx.x),
                                                   batch.first_cta[batch.num_matrices],
                                                   static_cast<int>(gridDim.x), &partials, staged);
}

// Matrices of both kinds: the first CTAs take those of bf16.
template <int kN, int kAhead, Rows kRows>
__global__ void __launch_bounds__(kFewThreads) FewRowsOfBoth(const __grid_constant__ Batch batch) {
  LetNextStart();
  __shared__ Partials<kN> partials;
  extern __shared__ __align__(16) uint4 staged[];
  const int cta = static_cast<int>(blockIdx.x);
  const int bf16_tiles = batch.first_cta[batch.num_bf16];
  if (cta < batch.bf16_ctas) {
    FewRowsTiles<Bf16Source, kN, kAhead, kRows, false>(batch, cta, bf16_tiles, batch.bf16_ctas,
                                                       &partials, staged);
  } else {
    FewRowsTiles<CodeSource, kN, kAhead, kRows, false>(
        batch, bf16_tiles + cta - batch.bf16_ctas, batch.first_cta[batch.num_matrices],
        static_cast<int>(gridDim.x) - batch.bf16_ctas, &partials, staged);
  }
}

}  // namespace
}  // namespace banyan::trunk::cuda
