// What a chunk of up to 64 tokens gives without the state, all chunks at once (notation as in
// delta_net_prefill.cu): its keys and queries split in two f16, and of each value head
//   A_ij = beta_i e^(G_i - G_j) (k_i . k_j)  for j < i      P_ij = e^(G_i - G_j) (q_i . k_j)  for j
//   <= i
// P and the inverse of I + A. A CTA takes a key head, a warp sixteen rows i. The diagonal blocks of
// 16 x 16 are inverted by substitution, one column in each lane; those left of them follow from
// X (I + A) = I, block row by block row and from the diagonal on:
//   X_ij = -(sum over j < k <= i of X_ik A_kj) X_jj
// No entry of X is larger than 1: it is beta_i k_i (products of I - beta k k^T, of decays) k_j.
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/f16_tiles.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kC = kChunkTokens;
constexpr int kThreads = 128;
constexpr int kBlock = 16;
constexpr int kBlocks = kC / kBlock;
constexpr int kSteps = kChunkHeadDim / kBlock;
static_assert(kBlocks == kThreads / kWarp);
constexpr float kLowerScale = kInverseScale / (kKeyScale * kKeyScale);

// All scaled by kInverseScale. Padded so that eight rows of two floats a lane touch all banks.
struct Triangles {
  float lower[kC][kC + 8];                      // A transposed: [j][i]
  float diagonal[kBlocks][kBlock][kBlock + 8];  // inverses of the diagonal blocks, transposed
};

struct Shared {
  union {
    unsigned char keys[sizeof(ChunkKeys::keys)];  // until the products with them are done
    Triangles triangles;                          // from then on
  };
  float sum[kC];  // G
  float beta[kC];
};

template <bool kExact>
__device__ __forceinline__ float4 LoadFour(const float* from, int d, int dk) {
  if (kExact) return *reinterpret_cast<const float4*>(from + d);
  return {d < dk ? from[d] : 0.0f, d + 1 < dk ? from[d + 1] : 0.0f, d + 2 < dk ? from[d + 2] : 0.0f,
          d + 3 < dk ? from[d + 3] : 0.0f};
}

// A lane's part of sixteen components of two of a warp's sixteen rows. A shorter chunk is filled up
// with zeros, which changes nothing.
struct Piece {
  float4 half[2];
};
template <bool kExact>
__device__ __forceinline__ Piece LoadPiece(const float* from, int64_t ld, int rows, int dk,
                                           int step) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(threadIdx.x) / kWarp * kBlock + lane / 4;
  Piece piece;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    piece.half[half] = row + half * 8 < rows ? LoadFour<kExact>(from + (row + half * 8) * ld,
                                                                step * kBlock + lane % 4 * 4, dk)
                                             : float4{0, 0, 0, 0};
  }
  return piece;
}

// To its units, and as a left side.
__device__ __forceinline__ SplitLeft StorePiece(const Piece& piece, float scale, int step,
                                                unsigned char* units) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  SplitLeft left;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4& v = piece.half[half];
    const Split2 first = SplitF16(scale * v.x, scale * v.y);
    const Split2 second = SplitF16(scale * v.z, scale * v.w);
    auto* const to = reinterpret_cast<uint32_t*>(
        units + ((warp * 2 + half) * kSteps + step) * kUnitBytes + lane * 4);
    constexpr int kTile = kTileBytes / 4;
    to[0] = first.hi;
    to[kTile] = second.hi;
    to[2 * kTile] = first.lo;
    to[3 * kTile] = second.lo;
    left.hi[half] = first.hi;
    left.hi[2 + half] = second.hi;
    left.lo[half] = first.lo;
    left.lo[2 + half] = second.lo;
  }
  return left;
}

// Sixteen rows of units as a left side.
__device__ __forceinline__ SplitLeft LoadLeft(const unsigned char* units, int warp, int step,
                                              int lane) {
  const unsigned char* const row = units +
                                   ((warp * 2 + lane / 8 % 2) * kSteps + step) * kUnitBytes +
                                   lane / 16 * kTileBytes + lane % 8 * kTileRowBytes;
  SplitLeft left;
  LoadTiles(left.hi, row);
  LoadTiles(left.lo, row + 2 * kTileBytes);
  return left;
}

// Block (i, j) of a triangle from results of Mma.
__device__ __forceinline__ void StoreBlock(unsigned char* triangle, int i, int j,
                                           const float (&c)[2][4], int lane) {
  unsigned char* const block = triangle + (i * (i + 1) / 2 + j) * 2 * kUnitBytes + lane * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const Split2 split = SplitF16(c[tile][2 * half], c[tile][2 * half + 1]);
      unsigned char* const to = block + half * kUnitBytes + tile * kTileBytes;
      *reinterpret_cast<uint32_t*>(to) = split.hi;
      *reinterpret_cast<uint32_t*>(to + 2 * kTileBytes) = split.lo;
    }
  }
}

// Up to the diagonal: c[j] += left times the transpose of 16 keys, at components 16 step + ...
__device__ __forceinline__ void MultiplyKeys(float (&c)[kBlocks][2][4], const SplitLeft& left,
                                             const unsigned char* keys, int step, int warp,
                                             int lane) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
    if (j > warp) continue;
    SplitRight right[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      LoadTiles(right[i].tiles,
                keys + ((2 * j + i) * kSteps + step) * kUnitBytes + lane * kTileRowBytes);
    }
    MmaSplit(c[j], left, right);
  }
}

// c += left times the transpose of `rows`, f32 in shared memory.
__device__ __forceinline__ void MmaTransposed(float (&c)[2][4], const SplitLeft& left,
                                              const float* rows, int ld, int lane) {
  SplitRight right[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float* const row = rows + (i * 8 + lane / 4) * ld + lane % 4 * 2;
    const float2 low = *reinterpret_cast<const float2*>(row);
    const float2 high = *reinterpret_cast<const float2*>(row + 8);
    const Split2 first = SplitF16(low.x, low.y);
    const Split2 second = SplitF16(high.x, high.y);
    right[i] = {{first.hi, second.hi, first.lo, second.lo}};
  }
  MmaSplit(c, left, right);
}

__device__ __forceinline__ void Multiply(float (&c)[2][4], float by) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) c[tile][e] *= by;
  }
}

// kExact: key_head_dim is 128 and rows of q and k are aligned.
template <bool kExact>
__global__ void __launch_bounds__(kThreads, 4)
    ChunkKernel(const StepTables step, const DeltaLaunch args, const ChunkRange range) {
  extern __shared__ __align__(128) unsigned char shared[];
  Shared& s = *reinterpret_cast<Shared*>(shared);
  BeginKernel();
  const DeltaShape& shape = args.shape;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int key_head = static_cast<int>(blockIdx.x);
  const int place = static_cast<int>(blockIdx.y);
  const int chunk = range.first + place;
  const int owner = step.chunk_owner[chunk];
  const Segment segment = step.segments[step.chunked[owner]];
  const int first = (chunk - step.first_chunk[owner]) * kC;
  const int rows = min(kC, segment.num_rows - first);
  const int64_t row0 = segment.first_row + int64_t{first};
  const int dk = kExact ? kChunkHeadDim : shape.key_head_dim;

  // Of warp 0: a lane's two tokens' gates of a head.
  const auto load_gates = [&](int h) {
    const int row = 2 * lane;
    const int64_t at = (row0 + row) * shape.num_value_heads + key_head * shape.ratio + h;
    float4 gates = {0, 0, 0, 0};
    if (warp > 0 || h >= shape.ratio) return gates;
    if (row < rows) gates.x = args.log_decay[at], gates.z = args.beta[at];
    if (row + 1 < rows) {
      gates.y = args.log_decay[at + shape.num_value_heads];
      gates.w = args.beta[at + shape.num_value_heads];
    }
    return gates;
  };
  float4 next_gates = load_gates(0);

  const int64_t ld = shape.conv_dim;
  const float* const q = args.qkv + row0 * ld + key_head * dk;
  ChunkKeys& to = args.chunk_keys[int64_t{place} * shape.num_key_heads + key_head];
  {
    Piece pieces[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      pieces[step] = LoadPiece<kExact>(q + shape.key_dim, ld, rows, dk, step);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      StorePiece(pieces[step], kKeyScale, step, s.keys);
    }
  }
  // Queries are on their way four pieces ahead.
  constexpr int kAhead = 4;
  Piece pieces[kAhead];
#pragma unroll
  for (int step = 0; step < kAhead; ++step) {
    pieces[step] = LoadPiece<kExact>(q, ld, rows, dk, step);
  }
  __syncthreads();
#pragma unroll 8
  for (int at = thread * 16; at < static_cast<int>(sizeof(to.keys)); at += kThreads * 16) {
    *reinterpret_cast<uint4*>(to.keys + at) = *reinterpret_cast<const uint4*>(s.keys + at);
  }
  // Rows 16 warp + .. of K K^T and Q K^T.
  float kk[kBlocks][2][4] = {};
  float qk[kBlocks][2][4] = {};
#pragma unroll 2
  for (int step = 0; step < kSteps; ++step) {
    MultiplyKeys(kk, LoadLeft(s.keys, warp, step, lane), s.keys, step, warp, lane);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const SplitLeft left = StorePiece(pieces[step % kAhead], kQueryScale, step, to.queries);
    if (step + kAhead < kSteps) {
      pieces[step % kAhead] = LoadPiece<kExact>(q, ld, rows, dk, step + kAhead);
    }
    MultiplyKeys(qk, left, s.keys, step, warp, lane);
  }

  for (int h = 0; h < shape.ratio; ++h) {
    const int head = key_head * shape.ratio + h;
    ChunkGates& gates = args.chunk_gates[int64_t{place} * shape.num_value_heads + head];
    const float4 current = next_gates;
    next_gates = load_gates(h + 1);
    if (warp == 0) {
      const float even = current.x;
      const float odd = current.y;
      float scan = even + odd;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const float before = __shfl_up_sync(kAllLanes, scan, offset);
        if (lane >= offset) scan += before;
      }
      float exclusive = __shfl_up_sync(kAllLanes, scan, 1);
      if (lane == 0) exclusive = 0;
      const float total = __shfl_sync(kAllLanes, scan, kWarp - 1);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 2 * lane + i;
        const float sum = i == 0 ? exclusive + even : scan;
        const float beta = i == 0 ? current.z : current.w;
        s.sum[row] = sum;
        s.beta[row] = beta;
        gates.decay[row] = expf(sum);
        gates.beta[row] = beta;
        gates.to_end[row] = expf(total - sum);
      }
    }
    __syncthreads();  // and nobody reads what was in the triangles' place

#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      if (j > warp) continue;
      float p[2][4];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = warp * kBlock + g + e / 2 * 8;
          const int column = j * kBlock + tile * 8 + 2 * t + e % 2;
          const float decay = column <= row ? expf(s.sum[row] - s.sum[column]) : 0.0f;
          p[tile][e] = qk[j][tile][e] * (kWeightScale / (kQueryScale * kKeyScale)) * decay;
          s.triangles.lower[column][row] =
              column < row ? kk[j][tile][e] * kLowerScale * decay * s.beta[row] : 0.0f;
        }
      }
      StoreBlock(gates.weights, warp, j, p, lane);
    }
    __syncwarp();

    if (lane < kBlock) {  // Column `lane` of the inverse of this warp's diagonal block.
      float x[kBlock];
#pragma unroll
      for (int i = 0; i < kBlock; ++i) x[i] = i == lane ? kInverseScale : 0.0f;
#pragma unroll
      for (int j = 0; j + 1 < kBlock; ++j) {
        const float* const a = &s.triangles.lower[warp * kBlock + j][warp * kBlock];
#pragma unroll
        for (int i = j + 1; i < kBlock; ++i) x[i] = fmaf(-a[i], x[j] / kInverseScale, x[i]);
      }
#pragma unroll
      for (int i = 0; i < kBlock; i += 4) {
        *reinterpret_cast<float4*>(&s.triangles.diagonal[warp][lane][i]) = {x[i], x[i + 1],
                                                                            x[i + 2], x[i + 3]};
      }
    }
    __syncthreads();

    // left[n] is X of block row `warp` and block column warp - n.
    SplitLeft left[kBlocks];
    {
      float x[2][4];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          x[tile][e] = s.triangles.diagonal[warp][tile * 8 + 2 * t + e % 2][g + e / 2 * 8];
        }
      }
      StoreBlock(gates.inverse, warp, warp, x, lane);
      left[0] = SplitResults(x[0], x[1]);
    }
#pragma unroll
    for (int n = 1; n < kBlocks; ++n) {
      if (n > warp) continue;
      const int j = warp - n;
      float product[2][4] = {};
#pragma unroll
      for (int k = 0; k < n; ++k) {
        MmaTransposed(product, left[k], &s.triangles.lower[j * kBlock][(warp - k) * kBlock], kC + 8,
                      lane);
      }
      Multiply(product, 1 / kInverseScale);
      float x[2][4] = {};
      MmaTransposed(x, SplitResults(product[0], product[1]), &s.triangles.diagonal[j][0][0],
                    kBlock + 8, lane);
      Multiply(x, -1 / kInverseScale);
      StoreBlock(gates.inverse, warp, j, x, lane);
      left[n] = SplitResults(x[0], x[1]);
    }
  }
}

}  // namespace

cudaError_t PrepareDeltaNetChunks() {
  for (auto* kernel : {ChunkKernel<true>, ChunkKernel<false>}) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared)));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t DeltaNetChunks(const StepTables& step, const DeltaLaunch& args, const ChunkRange& range,
                           cudaStream_t stream) {
  const DeltaShape& s = args.shape;
  const dim3 grid(static_cast<unsigned>(s.num_key_heads), static_cast<unsigned>(range.count));
  if (s.key_head_dim == kChunkHeadDim && s.conv_dim % 4 == 0) {
    Launch(ChunkKernel<true>, grid, kThreads, sizeof(Shared), stream, step, args, range);
  } else {
    Launch(ChunkKernel<false>, grid, kThreads, sizeof(Shared), stream, step, args, range);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
