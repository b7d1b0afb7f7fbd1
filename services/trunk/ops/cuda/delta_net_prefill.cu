// The recurrence in chunks of up to 64 tokens (model spec 3.4, chunked form; notation as in
// cpu/delta_net_prefill_kernel.h), plain f32:
//   A_ij = beta_i e^(G_i - G_j) (k_i . k_j)  for j < i      P_ij = e^(G_i - G_j) (q_i . k_j)  for j
//   <= i N    = (I + A)^-1 (beta_i (v_i - e^(G_i) S^T k_i)) o_i  = e^(G_i) S^T q_i + sum over j <=
//   i of P_ij N_j S    = e^(G_C) S + sum over j of e^(G_C - G_j) k_j N_j^T
// Columns of v, N, o and S are independent of each other: a CTA takes 32 of one head's, keeps its
// part of the state in shared memory and goes through the segment's chunks. A and P are computed by
// each of the head's CTAs; that they share nothing lets a single prompt fill the device. The gated
// norm, which joins a head's columns, is a second kernel. 97280 bytes of shared memory: what sm_89
// and sm_120 have.
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kC = 64;     // tokens of a chunk
constexpr int kCols = 32;  // value columns of a CTA
constexpr int kD = kMaxDeltaHeadDim;
constexpr int kThreads = 256;
// Rows padded by four floats: eight lanes that read 16 bytes of eight rows touch all banks.
constexpr int kLdK = kD + 4;
constexpr int kLdA = kC + 4;
constexpr int kLdN = kCols + 4;

struct Chunk {
  float keys[kC][kLdK];
  float state[kD][kLdN];
  float fresh[kC][kLdN];    // N
  float lower[kC][kLdA];    // A
  float weights[kC][kLdA];  // P
  float sum[kC];            // G
  float beta[kC];
  float decay[kC];   // e^G
  float to_end[kC];  // e^(G_C - G)
};

__device__ __forceinline__ float Component(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <bool kExact>
__device__ __forceinline__ float4 LoadQuery(const float* q, int d, int dk) {
  if (kExact) return *reinterpret_cast<const float4*>(q + d);
  return {d < dk ? q[d] : 0.0f, d + 1 < dk ? q[d + 1] : 0.0f, d + 2 < dk ? q[d + 2] : 0.0f,
          d + 3 < dk ? q[d + 3] : 0.0f};
}

// kExact: key_head_dim is 128 and rows of q are aligned.
template <bool kExact>
__global__ void __launch_bounds__(kThreads, 2)
    PrefillKernel(const StepTables step, const DeltaLaunch args) {
  extern __shared__ __align__(16) unsigned char shared[];
  Chunk& c = *reinterpret_cast<Chunk*>(shared);
  const DeltaShape& s = args.shape;
  const Segment segment = step.segments[step.chunked[blockIdx.z]];
  const int head = static_cast<int>(blockIdx.y);
  const int key_head = head / s.ratio;
  const int col0 = static_cast<int>(blockIdx.x) * kCols;
  const int dk = kExact ? kD : s.key_head_dim;
  const int padded_dk = (dk + 3) / 4 * 4;
  const int dv = s.value_head_dim;
  const int cols = min(kCols, dv - col0);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  float* state =
      args.states + (int64_t{segment.slot} * s.num_value_heads + head) * (int64_t{dk} * dv) + col0;

  for (int i = thread; i < kD * kCols; i += kThreads) {
    const int row = i / kCols;
    const int col = i % kCols;
    const bool there = segment.first_position != 0 && row < dk && col < cols;
    c.state[row][col] = there ? state[int64_t{row} * dv + col] : 0.0f;
  }

  for (int first = 0; first < segment.num_rows; first += kC) {
    const int rows = min(kC, segment.num_rows - first);
    const int64_t row0 = segment.first_row + int64_t{first};
    const float* qkv = args.qkv + row0 * s.conv_dim;
    const float* q = qkv + key_head * s.key_head_dim;
    const float* k = qkv + s.key_dim + key_head * s.key_head_dim;
    const float* v = qkv + 2 * s.key_dim + head * s.value_head_dim + col0;
    float* out = args.out + row0 * s.value_dim + head * s.value_head_dim + col0;

    // A shorter chunk is filled up with keys, values and gates of zero, which changes nothing.
    for (int i = thread; i < kC * kD; i += kThreads) {
      const int row = i / kD;
      const int d = i % kD;
      c.keys[row][d] = row < rows && d < dk ? k[int64_t{row} * s.conv_dim + d] : 0.0f;
    }
    if (warp == 0) {
      const auto gate = [&](int row) {
        return row < rows ? args.log_decay[(row0 + row) * s.num_value_heads + head] : 0.0f;
      };
      const float even = gate(2 * lane);
      const float odd = gate(2 * lane + 1);
      float scan = even + odd;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const float before = __shfl_up_sync(kAllLanes, scan, offset);
        if (lane >= offset) scan += before;
      }
      float exclusive = __shfl_up_sync(kAllLanes, scan, 1);
      if (lane == 0) exclusive = 0;
      const float total = __shfl_sync(kAllLanes, scan, kWarp - 1);
      c.sum[2 * lane] = exclusive + even;
      c.sum[2 * lane + 1] = scan;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 2 * lane + i;
        const float sum = i == 0 ? exclusive + even : scan;
        c.decay[row] = expf(sum);
        c.to_end[row] = expf(total - sum);
        c.beta[row] = row < rows ? args.beta[(row0 + row) * s.num_value_heads + head] : 0.0f;
      }
    }
    __syncthreads();

    {  // A and P: rows ty + 16 a, columns tx + 16 b, b <= a.
      const int tx = thread % 16;
      const int ty = thread / 16;
      float kk[4][4] = {};
      float qk[4][4] = {};
      const float* q_rows[4];
#pragma unroll
      for (int a = 0; a < 4; ++a) {
        q_rows[a] = q + int64_t{min(ty + 16 * a, rows - 1)} * s.conv_dim;
      }
      for (int d = 0; d < padded_dk; d += 4) {
        float4 column[4];
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          column[b] = *reinterpret_cast<const float4*>(&c.keys[tx + 16 * b][d]);
        }
#pragma unroll
        for (int a = 0; a < 4; ++a) {
          const float4 key = *reinterpret_cast<const float4*>(&c.keys[ty + 16 * a][d]);
          const float4 query = LoadQuery<kExact>(q_rows[a], d, dk);
#pragma unroll
          for (int b = 0; b <= a; ++b) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              kk[a][b] = fmaf(Component(key, i), Component(column[b], i), kk[a][b]);
              qk[a][b] = fmaf(Component(query, i), Component(column[b], i), qk[a][b]);
            }
          }
        }
      }
#pragma unroll
      for (int a = 0; a < 4; ++a) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          const int i = ty + 16 * a;
          const int j = tx + 16 * b;
          const float decay = j <= i ? expf(c.sum[i] - c.sum[j]) : 0.0f;
          c.lower[i][j] = j < i ? kk[a][b] * decay * c.beta[i] : 0.0f;
          c.weights[i][j] = j <= i && i < rows ? qk[a][b] * decay : 0.0f;
        }
      }
    }

    // From here on a thread has column `lane` and rows of its warp.
    constexpr int kRowsPerWarp = kC / (kThreads / kWarp);
    const int my_row0 = warp * kRowsPerWarp;
    {  // Right-hand side of N.
      float recall[kRowsPerWarp] = {};
      for (int d = 0; d < padded_dk; d += 4) {
        float cells[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) cells[i] = c.state[d + i][lane];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float4 key = *reinterpret_cast<const float4*>(&c.keys[my_row0 + r][d]);
#pragma unroll
          for (int i = 0; i < 4; ++i) recall[r] = fmaf(Component(key, i), cells[i], recall[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int row = my_row0 + r;
        const float value = row < rows && lane < cols ? v[int64_t{row} * s.conv_dim + lane] : 0.0f;
        c.fresh[row][lane] = c.beta[row] * fmaf(-c.decay[row], recall[r], value);
      }
    }
    __syncthreads();

    // Forward substitution in blocks of 16 rows: what earlier blocks explain, by all; the rest, by
    // one warp with a column in each lane.
    for (int block = 0; block < kC; block += 16) {
      if (block > 0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = block + warp * 2 + r;
          float value = c.fresh[row][lane];
          for (int j = 0; j < block; j += 4) {
            const float4 a = *reinterpret_cast<const float4*>(&c.lower[row][j]);
#pragma unroll
            for (int i = 0; i < 4; ++i) value = fmaf(-Component(a, i), c.fresh[j + i][lane], value);
          }
          c.fresh[row][lane] = value;
        }
        __syncthreads();
      }
      if (warp == 0) {
        float solved[16];
#pragma unroll
        for (int r = 0; r < 16; ++r) {
          float value = c.fresh[block + r][lane];
#pragma unroll
          for (int j = 0; j < r; ++j) {
            value = fmaf(-c.lower[block + r][block + j], solved[j], value);
          }
          solved[r] = value;
        }
#pragma unroll
        for (int r = 0; r < 16; ++r) c.fresh[block + r][lane] = solved[r];
      }
      __syncthreads();
    }

    {  // o, before its norm.
      float o[kRowsPerWarp] = {};
      const float* q_rows[kRowsPerWarp];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        q_rows[r] = q + int64_t{min(my_row0 + r, rows - 1)} * s.conv_dim;
      }
      for (int d = 0; d < padded_dk; d += 4) {
        float cells[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) cells[i] = c.state[d + i][lane];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float4 query = LoadQuery<kExact>(q_rows[r], d, dk);
#pragma unroll
          for (int i = 0; i < 4; ++i) o[r] = fmaf(Component(query, i), cells[i], o[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) o[r] *= c.decay[my_row0 + r];
      for (int j = 0; j < my_row0 + kRowsPerWarp; j += 4) {
        float n[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) n[i] = c.fresh[j + i][lane];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float4 p = *reinterpret_cast<const float4*>(&c.weights[my_row0 + r][j]);
#pragma unroll
          for (int i = 0; i < 4; ++i) o[r] = fmaf(Component(p, i), n[i], o[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int row = my_row0 + r;
        if (row < rows && lane < cols) out[int64_t{row} * s.value_dim + lane] = o[r];
      }
    }
    __syncthreads();

    {  // The state that leaves the chunk: rows 16 warp .. 16 warp + 15.
      constexpr int kStateRows = kD / (kThreads / kWarp);
      const int d0 = warp * kStateRows;
      float cells[kStateRows];
      const float decay = expf(c.sum[kC - 1]);
#pragma unroll
      for (int i = 0; i < kStateRows; ++i) cells[i] = decay * c.state[d0 + i][lane];
      for (int j = 0; j < kC; ++j) {
        const float n = c.to_end[j] * c.fresh[j][lane];
#pragma unroll
        for (int i = 0; i < kStateRows; i += 4) {
          const float4 key = *reinterpret_cast<const float4*>(&c.keys[j][d0 + i]);
#pragma unroll
          for (int e = 0; e < 4; ++e) cells[i + e] = fmaf(Component(key, e), n, cells[i + e]);
        }
      }
#pragma unroll
      for (int i = 0; i < kStateRows; ++i) c.state[d0 + i][lane] = cells[i];
    }
    __syncthreads();
  }

  for (int i = thread; i < kD * kCols; i += kThreads) {
    const int row = i / kCols;
    const int col = i % kCols;
    if (row < dk && col < cols) state[int64_t{row} * dv + col] = c.state[row][col];
  }
}

// out = out * rsqrt(mean(out^2) + eps) * weight * silu(z), a warp per head of a row.
__global__ void __launch_bounds__(kThreads)
    GatedNormKernel(const StepTables step, const DeltaLaunch args) {
  BeginKernel();
  const DeltaShape& s = args.shape;
  const Segment segment = step.segments[step.chunked[blockIdx.z]];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head =
      static_cast<int>(blockIdx.y) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (head >= s.num_value_heads) return;
  const int dv = s.value_head_dim;
  const int z_column = head / s.ratio * s.group_dim + 2 * s.key_head_dim +
                       (s.ratio + head % s.ratio) * s.value_head_dim;
  for (int r = static_cast<int>(blockIdx.x); r < segment.num_rows;
       r += static_cast<int>(gridDim.x)) {
    const int64_t row = segment.first_row + int64_t{r};
    float* out = args.out + row * s.value_dim + head * s.value_head_dim;
    float values[kD / kWarp];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kD / kWarp; ++i) {
      const int at = i * kWarp + lane;
      values[i] = at < dv ? out[at] : 0.0f;
      squares = fmaf(values[i], values[i], squares);
    }
    const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dv) + s.eps);
#pragma unroll
    for (int i = 0; i < kD / kWarp; ++i) {
      const int at = i * kWarp + lane;
      if (at >= dv) continue;
      const float z = args.qkvz[row * s.qkvz_dim + z_column + at];
      out[at] = values[i] * scale * args.norm_weight[at] * Silu(z);
    }
  }
}

}  // namespace

cudaError_t PrepareDeltaNetPrefill() {
  for (auto* kernel : {PrefillKernel<true>, PrefillKernel<false>}) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Chunk)));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t DeltaNetPrefill(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream) {
  if (step.num_chunked == 0) return cudaSuccess;
  const DeltaShape& s = args.shape;
  const dim3 grid(static_cast<unsigned>((s.value_head_dim + kCols - 1) / kCols),
                  static_cast<unsigned>(s.num_value_heads),
                  static_cast<unsigned>(step.num_chunked));
  if (s.key_head_dim == kD && s.conv_dim % 4 == 0) {
    LaunchAlone(PrefillKernel<true>, grid, kThreads, sizeof(Chunk), stream, step, args);
  } else {
    LaunchAlone(PrefillKernel<false>, grid, kThreads, sizeof(Chunk), stream, step, args);
  }
  const int per_cta = kThreads / kWarp;
  const dim3 norm_grid(static_cast<unsigned>(step.num_rows < 1024 ? step.num_rows : 1024),
                       static_cast<unsigned>((s.num_value_heads + per_cta - 1) / per_cta),
                       static_cast<unsigned>(step.num_chunked));
  Launch(GatedNormKernel, norm_grid, kThreads, 0, stream, step, args);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
