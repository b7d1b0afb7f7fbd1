// The recurrence in chunks of up to 64 tokens (model spec 3.4, chunked form; notation as in
// cpu/delta_net_prefill_kernel.h):
//   A_ij = beta_i e^(G_i - G_j) (k_i . k_j)  for j < i
//   P_ij = e^(G_i - G_j) (q_i . k_j)  for j <= i
//   N    = (I + A)^-1 (beta_i (v_i - e^(G_i) S^T k_i))
//   o_i  = e^(G_i) S^T q_i + sum over j <= i of P_ij N_j
//   S    = e^(G_C) S + sum over j of e^(G_C - G_j) k_j N_j^T
// What S has no part in is there already (delta_net_chunks.cu). Columns of v, N, o and S are
// independent of each other: a CTA takes 32 of one head's through the chunks, a pair of warps 16 of
// these. Everything is computed transposed, columns of v being rows of products: then results of
// one product are the left side of the next, and state and N never leave the registers. A warp of a
// pair has half of the state's rows; what both recall is added up through shared memory. N is
// computed by both, o by each for half of the tokens.
// Factors are split in two f16, within 2^-22; sums and state are f32. The left sides, whose range
// nobody knows, are scaled column of v by column of v: the state by its largest value, all that
// comes of the chunk by the largest right-hand side of N; no N is larger than the sum of 64 of
// these. The state decays and is added to outside of the products, which would round it down 12
// times a chunk.
// 117 us for 2,048 tokens (H200), of which bringing the chunks alone would take 37. Not faster
// there: o by four warps of its own (137), and each chunk once for two or four CTAs of a cluster
// (154, 319).
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/f16_tiles.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kC = kChunkTokens;
constexpr int kPairs = 2;
constexpr int kPairCols = 16;
constexpr int kCols = kPairs * kPairCols;  // value columns of a CTA
constexpr int kThreads = 2 * kPairs * kWarp;
constexpr int kTokenTiles = kC / 8;
constexpr int kBlocks = kC / 16;
constexpr int kUnitsOfRow = kChunkHeadDim / 16;
constexpr int kHalf = kChunkHeadDim / 2;  // rows of the state of a warp
constexpr int kSteps = kHalf / 16;

// What is ready of a chunk for one head.
struct Stage {
  ChunkKeys keys;
  ChunkGates gates;
};

// Lane by lane what a warp has for the other of its pair.
struct Exchange {
  float4 recalled[kTokenTiles][kWarp];
  float4 out[kTokenTiles][kWarp];
};

// Two stages where shared memory holds them, so that a chunk comes while the one before it is
// computed; else the exchange takes the place of queries that are done with. Same results.
template <int kStages>
constexpr size_t kSharedBytes = kStages == 2 ? 2 * sizeof(Stage) + 2 * kPairs * sizeof(Exchange)
                                             : sizeof(Stage);
static_assert(2 * kPairs * sizeof(Exchange) <= sizeof(ChunkKeys::queries));
static_assert(kSharedBytes<1> <= 99 * 1024);  // sm_89, sm_120

template <int kBytes>
__device__ __forceinline__ void Fetch(unsigned char* to, const void* from) {
  constexpr int kAtOnce = kThreads * 16;
  const int at = static_cast<int>(threadIdx.x) * 16;
  to += at;
  const unsigned char* const source = static_cast<const unsigned char*>(from) + at;
#pragma unroll
  for (int i = 0; i < kBytes / kAtOnce; ++i) CopyAsync16(to + i * kAtOnce, source + i * kAtOnce);
  if constexpr (kBytes % kAtOnce > 0) {
    constexpr int kWhole = kBytes / kAtOnce * kAtOnce;
    if (at < kBytes - kWhole) CopyAsync16(to + kWhole, source + kWhole);
  }
}

// c [16, 64] += left [16, 64] times the transpose of 64 rows and four units each.
__device__ __forceinline__ void MultiplyRows(float (&c)[kTokenTiles][4],
                                             const SplitLeft (&left)[kSteps],
                                             const unsigned char* units, int lane) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    SplitRight right[kTokenTiles];
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      LoadTiles(right[i].tiles,
                units + (i * kUnitsOfRow + step) * kUnitBytes + lane * kTileRowBytes);
    }
    MmaSplit(c, left[step], right);
  }
}

// c [16, 16] += left [16, 16] times the transpose of block (i, j) of a triangle.
__device__ __forceinline__ void MultiplyBlock(float (*c)[4], const SplitLeft& left,
                                              const unsigned char* triangle, int i, int j,
                                              int lane) {
  const unsigned char* const block =
      triangle + (i * (i + 1) / 2 + j) * 2 * kUnitBytes + lane * kTileRowBytes;
  SplitRight right[2];
  LoadTiles(right[0].tiles, block);
  LoadTiles(right[1].tiles, block + kUnitBytes);
  MmaSplit(c, left, right);
}

// Powers of two that bring the largest of a column's values to 4 .. 8, and back: of columns col and
// col + 8. N, which is scaled by kInverseScale as well, is then below 2^15.
struct Scales {
  float up[2];
  float down[2];
};
__device__ __forceinline__ Scales ScalesOf(const float (&c)[kTokenTiles][4]) {
  Scales scales;
#pragma unroll
  for (int column = 0; column < 2; ++column) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      largest = fmaxf(largest, fmaxf(fabsf(c[i][2 * column]), fabsf(c[i][2 * column + 1])));
    }
    // Of the four lanes that have the column.
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 3u), 254u);
    scales.up[column] = __uint_as_float((256 - exponent) << 23);
    scales.down[column] = __uint_as_float((exponent - 2) << 23);
  }
  return scales;
}

__device__ __forceinline__ void SplitAll(SplitLeft (&left)[kBlocks],
                                         const float (&c)[kTokenTiles][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) left[i] = SplitResults(c[2 * i], c[2 * i + 1]);
}
__device__ __forceinline__ void SplitAll(SplitLeft (&left)[kBlocks],
                                         const float (&c)[kTokenTiles][4], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    float scaled[2][4];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scaled[tile][e] = c[2 * i + tile][e] * by[e / 2];
    }
    left[i] = SplitResults(scaled[0], scaled[1]);
  }
}
static_assert(kBlocks == kSteps && kHalf == kC);

// kExact: value_head_dim is a multiple of kCols.
template <int kStages, bool kExact>
__global__ void __launch_bounds__(kThreads, 1)
    RecurrenceKernel(const StepTables step, const DeltaLaunch args, const ChunkRange range) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto* const stages = reinterpret_cast<Stage*>(shared);
  const DeltaShape& s = args.shape;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int half = warp % 2;
  const int head = static_cast<int>(blockIdx.y);
  const int key_head = head / s.ratio;
  const int dk = s.key_head_dim;
  const int dv = s.value_head_dim;
  // This lane's columns of v: col and col + 8.
  const int col = static_cast<int>(blockIdx.x) * kCols + warp / 2 * kPairCols + g;

  const int index = range.first_segment + static_cast<int>(blockIdx.z);
  const Segment segment = step.segments[step.chunked[index]];
  const int first_chunk = step.first_chunk[index];
  const int begin = max(first_chunk, range.first);
  const int end = min(first_chunk + (segment.num_rows + kC - 1) / kC, range.first + range.count);

  const auto fetch = [&](int chunk) {
    Stage& stage = stages[kStages == 2 ? (chunk - begin) % 2 : 0];
    const int64_t place = chunk - range.first;
    Fetch<sizeof(ChunkKeys)>(stage.keys.keys, args.chunk_keys + place * s.num_key_heads + key_head);
    Fetch<sizeof(ChunkGates)>(stage.gates.inverse,
                              args.chunk_gates + place * s.num_value_heads + head);
    CommitCopies();
  };
  fetch(begin);

  // S transposed, as results of Mma: [2 step + j] is rows 8 j + .. of sixteen of this warp's half.
  float state[2 * kSteps][4];
  float* const held =
      args.states + (int64_t{segment.slot} * s.num_value_heads + head) * (int64_t{dk} * dv);
  const auto row_of = [&](int tile, int e) {
    return half * kHalf + tile / 2 * 16 + 4 * t + tile % 2 * 2 + e % 2;
  };
  const bool from_zero = segment.first_position == 0 && begin == first_chunk;
#pragma unroll
  for (int tile = 0; tile < 2 * kSteps; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = row_of(tile, e);
      const int column = col + e / 2 * 8;
      const bool there = !from_zero && row < dk && column < dv;
      state[tile][e] = there ? held[int64_t{row} * dv + column] : 0.0f;
    }
  }

  for (int chunk = begin; chunk < end; ++chunk) {
    Stage& stage = stages[kStages == 2 ? (chunk - begin) % 2 : 0];
    auto* const exchange = kStages == 2 ? reinterpret_cast<Exchange*>(stages + 2)
                                        : reinterpret_cast<Exchange*>(stage.keys.queries);
    const int first = (chunk - first_chunk) * kC;
    const int rows = min(kC, segment.num_rows - first);
    const int64_t row0 = segment.first_row + int64_t{first};

    // Tokens of which this warp computes o and brings v: two blocks of 16, whose rows of P have
    // five blocks together. Tile i of eight tokens:
    const auto token_tile = [&](int i) { return (i < 2 ? half : 3 - half) * 2 + i % 2; };
    float value[kTokenTiles / 2][4];
    const float* const v = args.qkv + row0 * s.conv_dim + 2 * s.key_dim + head * dv;
#pragma unroll
    for (int i = 0; i < kTokenTiles / 2; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Beyond the last token any value will do, since beta is 0; beyond the last column, too.
        const int token = min(token_tile(i) * 8 + 2 * t + e % 2, rows - 1);
        const int column = kExact ? col + e / 2 * 8 : min(col + e / 2 * 8, dv - 1);
        value[i][e] = v[token * s.conv_dim + column];
      }
    }

    AwaitCopies<0>();
    __syncthreads();  // and nobody is in the chunk before
    if (kStages == 2 && chunk + 1 < end) fetch(chunk + 1);

    float recalled[kTokenTiles][4] = {};  // S^T k, this warp's part
    float out[kTokenTiles][4] = {};       // S^T q
    const Scales state_scales = ScalesOf(state);
    {
      SplitLeft left[kSteps];
      SplitAll(left, state, state_scales.up);
      MultiplyRows(recalled, left, stage.keys.keys + half * kSteps * kUnitBytes, lane);
      MultiplyRows(out, left, stage.keys.queries + half * kSteps * kUnitBytes, lane);
    }
    // v - e^G S^T k of its own tokens, -e^G S^T k of the others.
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      const float2 decay = *reinterpret_cast<const float2*>(&stage.gates.decay[i * 8 + 2 * t]);
      const bool mine = (i / 2 == 0 || i / 2 == 3) == (half == 0);
      constexpr int kAt[kTokenTiles] = {0, 1, 0, 1, 2, 3, 2, 3};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float from = mine ? value[kAt[i]][e] : 0.0f;
        const float scale = state_scales.down[e / 2] / kKeyScale;
        recalled[i][e] = fmaf((e % 2 == 0 ? -decay.x : -decay.y) * scale, recalled[i][e], from);
      }
    }
    // S^T q to what it is.
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[i][e] *= state_scales.down[e / 2] / kQueryScale;
    }
    if (kStages == 1) __syncthreads();  // everyone is done with the queries
    {
      Exchange& to = exchange[warp];
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        to.recalled[i][lane] = {recalled[i][0], recalled[i][1], recalled[i][2], recalled[i][3]};
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        to.out[i][lane] = {out[i][0], out[i][1], out[i][2], out[i][3]};
      }
    }
    __syncthreads();

    float mine[kTokenTiles / 2][4];  // e^G S^T q of this warp's tokens
    {
      const Exchange& from = exchange[warp ^ 1];
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const float2 beta = *reinterpret_cast<const float2*>(&stage.gates.beta[i * 8 + 2 * t]);
        const float4 other = from.recalled[i][lane];
        recalled[i][0] = beta.x * (recalled[i][0] + other.x);
        recalled[i][1] = beta.y * (recalled[i][1] + other.y);
        recalled[i][2] = beta.x * (recalled[i][2] + other.z);
        recalled[i][3] = beta.y * (recalled[i][3] + other.w);
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles / 2; ++i) {
        const float2 decay =
            *reinterpret_cast<const float2*>(&stage.gates.decay[token_tile(i) * 8 + 2 * t]);
        const int tile = token_tile(i);
        const float4 a = exchange[warp & ~1].out[tile][lane];
        const float4 b = exchange[warp | 1].out[tile][lane];
        mine[i][0] = decay.x * (a.x + b.x);
        mine[i][1] = decay.y * (a.y + b.y);
        mine[i][2] = decay.x * (a.z + b.z);
        mine[i][3] = decay.y * (a.w + b.w);
      }
    }
    const Scales scales = ScalesOf(recalled);

    float added[kTokenTiles][4] = {};  // N, scaled
    {
      SplitLeft left[kBlocks];
      SplitAll(left, recalled, scales.up);
      // By columns of blocks, so that products that do not wait for each other are neighbours.
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
        for (int i = j; i < kBlocks; ++i) {
          MultiplyBlock(&added[2 * i], left[j], stage.gates.inverse, i, j, lane);
        }
      }
    }

    {  // o
      float weighted[kTokenTiles / 2][4] = {};
      SplitLeft left[kBlocks];
      SplitAll(left, added);
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        if (j <= half) MultiplyBlock(&weighted[0], left[j], stage.gates.weights, half, j, lane);
        if (j <= 3 - half) {
          MultiplyBlock(&weighted[2], left[j], stage.gates.weights, 3 - half, j, lane);
        }
      }
      float* const o = args.out + row0 * s.value_dim + head * dv;
#pragma unroll
      for (int i = 0; i < kTokenTiles / 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = token_tile(i) * 8 + 2 * t + e % 2;
          const int column = col + e / 2 * 8;
          const float result =
              fmaf(weighted[i][e], scales.down[e / 2] / (kInverseScale * kWeightScale), mine[i][e]);
          if (token < rows && (kExact || column < dv)) o[token * s.value_dim + column] = result;
        }
      }
    }

    {  // The state that leaves the chunk.
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const float2 to_end = *reinterpret_cast<const float2*>(&stage.gates.to_end[i * 8 + 2 * t]);
#pragma unroll
        for (int e = 0; e < 4; ++e) added[i][e] *= e % 2 == 0 ? to_end.x : to_end.y;
      }
      SplitLeft left[kBlocks];
      SplitAll(left, added);
      float written[2 * kSteps][4] = {};
      // Lane 8 i + r: row r of high terms of tokens 0-7 and 8-15, then of low terms.
      const unsigned char* const keys = stage.keys.keys + half * kSteps * kUnitBytes +
                                        lane / 8 % 2 * kUnitsOfRow * kUnitBytes +
                                        lane / 16 * 2 * kTileBytes + lane % 8 * kTileRowBytes;
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        SplitRight right[2 * kSteps];
#pragma unroll
        for (int tile = 0; tile < 2 * kSteps; ++tile) {
          LoadTilesTransposed(right[tile].tiles, keys + 2 * j * kUnitsOfRow * kUnitBytes +
                                                     tile / 2 * kUnitBytes + tile % 2 * kTileBytes);
        }
        MmaSplit(written, left[j], right);
      }
      const float decay = stage.gates.decay[kC - 1];
#pragma unroll
      for (int tile = 0; tile < 2 * kSteps; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          state[tile][e] =
              fmaf(decay, state[tile][e],
                   written[tile][e] * (scales.down[e / 2] / (kInverseScale * kKeyScale)));
        }
      }
    }
    if (kStages == 1 && chunk + 1 < end) {
      __syncthreads();
      fetch(chunk + 1);
    }
  }

#pragma unroll
  for (int tile = 0; tile < 2 * kSteps; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = row_of(tile, e);
      const int column = col + e / 2 * 8;
      if (row < dk && column < dv) held[int64_t{row} * dv + column] = state[tile][e];
    }
  }
}

bool HoldsTwoStages() {
  static const bool holds = [] {
    int device = 0;
    int most = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
               cudaSuccess &&
           most >= static_cast<int>(kSharedBytes<2>);
  }();
  return holds;
}

template <int kStages>
cudaError_t Prepare() {
  for (auto* kernel : {RecurrenceKernel<kStages, true>, RecurrenceKernel<kStages, false>}) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kSharedBytes<kStages>));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <int kStages>
void Start(const StepTables& step, const DeltaLaunch& args, const ChunkRange& range,
           cudaStream_t stream) {
  const DeltaShape& s = args.shape;
  const dim3 grid(static_cast<unsigned>((s.value_head_dim + kCols - 1) / kCols),
                  static_cast<unsigned>(s.num_value_heads),
                  static_cast<unsigned>(range.num_segments));
  auto* const kernel = s.value_head_dim % kCols == 0 ? RecurrenceKernel<kStages, true>
                                                     : RecurrenceKernel<kStages, false>;
  LaunchAlone(kernel, grid, kThreads, kSharedBytes<kStages>, stream, step, args, range);
}

}  // namespace

cudaError_t PrepareDeltaNetPrefill() { return HoldsTwoStages() ? Prepare<2>() : Prepare<1>(); }

cudaError_t DeltaNetPrefill(const StepTables& step, const DeltaLaunch& args,
                            const ChunkRange& range, cudaStream_t stream) {
  if (HoldsTwoStages()) {
    Start<2>(step, args, range, stream);
  } else {
    Start<1>(step, args, range, stream);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
