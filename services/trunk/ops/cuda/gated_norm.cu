// out = out * rsqrt(mean(out^2) + eps) * weight * silu(z) of every head of every row of a chunk: a
// warp takes a head of some rows, which it has on their way at once.
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;
constexpr int kPerLane = kMaxDeltaHeadDim / kWarp;

// Four neighbouring values, zero beyond the head's width.
template <bool kExact>
__device__ __forceinline__ void LoadFour(float (&to)[kPerLane], const float* from, int at, int dv) {
  if constexpr (kExact) {
    const float4 v = *reinterpret_cast<const float4*>(from + at);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) to[i] = at + i < dv ? from[at + i] : 0.0f;
  }
}

// kExact: value_head_dim is 128 and heads begin at multiples of 16 bytes.
template <bool kExact>
__global__ void __launch_bounds__(kThreads)
    GatedNormKernel(const StepTables step, const DeltaLaunch args) {
  BeginKernel();
  const DeltaShape& s = args.shape;
  const int chunk = static_cast<int>(blockIdx.x) / (kChunkTokens / kRows);
  const int owner = step.chunk_owner[chunk];
  const Segment segment = step.segments[step.chunked[owner]];
  const int first = (chunk - step.first_chunk[owner]) * kChunkTokens +
                    static_cast<int>(blockIdx.x) % (kChunkTokens / kRows) * kRows;
  const int rows = min(kRows, segment.num_rows - first);
  const int at = static_cast<int>(threadIdx.x) % kWarp * kPerLane;
  const int head =
      static_cast<int>(blockIdx.y) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (head >= s.num_value_heads || rows <= 0) return;
  const int dv = s.value_head_dim;
  const int64_t row0 = segment.first_row + int64_t{first};
  float* const out = args.out + row0 * s.value_dim + head * dv;
  const float* const z = args.qkvz + row0 * s.qkvz_dim + head / s.ratio * s.group_dim +
                         2 * s.key_head_dim + (s.ratio + head % s.ratio) * dv;
  float weight[kPerLane];
  float values[kRows][kPerLane];
  float gates[kRows][kPerLane];
  LoadFour<kExact>(weight, args.norm_weight, at, dv);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) continue;
    LoadFour<kExact>(values[r], out + int64_t{r} * s.value_dim, at, dv);
    LoadFour<kExact>(gates[r], z + int64_t{r} * s.qkvz_dim, at, dv);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) continue;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) squares = fmaf(values[r][i], values[r][i], squares);
    const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dv) + s.eps);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      values[r][i] = values[r][i] * scale * weight[i] * Silu(gates[r][i]);
    }
    float* const to = out + int64_t{r} * s.value_dim + at;
    if constexpr (kExact) {
      *reinterpret_cast<float4*>(to) = {values[r][0], values[r][1], values[r][2], values[r][3]};
    } else {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (at + i < dv) to[i] = values[r][i];
      }
    }
  }
}

}  // namespace

cudaError_t GatedNorm(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream) {
  if (step.num_chunks == 0) return cudaSuccess;
  const DeltaShape& s = args.shape;
  const int per_cta = kThreads / kWarp;
  const dim3 grid(static_cast<unsigned>(step.num_chunks * (kChunkTokens / kRows)),
                  static_cast<unsigned>((s.num_value_heads + per_cta - 1) / per_cta));
  if (s.value_head_dim == kMaxDeltaHeadDim && s.key_head_dim % 4 == 0) {
    Launch(GatedNormKernel<true>, grid, kThreads, 0, stream, step, args);
  } else {
    Launch(GatedNormKernel<false>, grid, kThreads, 0, stream, step, args);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
