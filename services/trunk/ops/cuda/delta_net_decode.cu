// r = e^g S^T k;  u = beta (v - r);  S = e^g S + k u^T;  o = S^T q, then the gated norm.
// One CTA per head holds the state in registers: 16 warps of 8 rows (key dimension) and lanes of 4
// columns (value dimension), so that 64 KiB are on their way at once and are read and written once
// however many tokens the segment has. Sums over rows: within a thread, then over the warps in
// order.
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = kMaxDeltaHeadDim / kWarps;  // of one thread
constexpr int kCols = kMaxDeltaHeadDim / kWarp;
static_assert(kCols == 4);

// kExact: both dimensions are 128, so that rows of the state are aligned and nothing is masked.
template <bool kExact>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(const StepTables step, const DeltaLaunch args) {
  BeginKernel();
  __shared__ float4 partial[kWarps][kWarp];
  __shared__ float update[kMaxDeltaHeadDim];
  __shared__ float keys[kMaxDeltaHeadDim];
  __shared__ float queries[kMaxDeltaHeadDim];
  __shared__ float squares[kMaxDeltaHeadDim / kWarp];
  const DeltaShape& s = args.shape;
  const Segment segment = step.segments[step.recurrent[blockIdx.y]];
  const int head = static_cast<int>(blockIdx.x);
  const int key_head = head / s.ratio;
  const int thread = static_cast<int>(threadIdx.x);
  const int row0 = thread / kWarp * kRows;
  const int col0 = thread % kWarp * kCols;
  const int dk = kExact ? kMaxDeltaHeadDim : s.key_head_dim;
  const int dv = kExact ? kMaxDeltaHeadDim : s.value_head_dim;
  float* state =
      args.states + (int64_t{segment.slot} * s.num_value_heads + head) * (int64_t{dk} * dv);

  float4 cells[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    cells[i] = {0, 0, 0, 0};
    const int row = row0 + i;
    if (segment.first_position == 0 || row >= dk) continue;
    if (kExact) {
      cells[i] = *reinterpret_cast<const float4*>(state + row * dv + col0);
    } else {
      const float* from = state + row * dv;
      if (col0 + 0 < dv) cells[i].x = from[col0 + 0];
      if (col0 + 1 < dv) cells[i].y = from[col0 + 1];
      if (col0 + 2 < dv) cells[i].z = from[col0 + 2];
      if (col0 + 3 < dv) cells[i].w = from[col0 + 3];
    }
  }

  const int z_column =
      key_head * s.group_dim + 2 * s.key_head_dim + (s.ratio + head % s.ratio) * s.value_head_dim;
  for (int64_t row = segment.first_row; row < segment.first_row + segment.num_rows; ++row) {
    const float* qkv = args.qkv + row * s.conv_dim;
    if (thread < kMaxDeltaHeadDim) {
      keys[thread] = thread < dk ? qkv[s.key_dim + key_head * s.key_head_dim + thread] : 0.0f;
      queries[thread] = thread < dk ? qkv[key_head * s.key_head_dim + thread] : 0.0f;
    }
    const float decay = expf(args.log_decay[row * s.num_value_heads + head]);
    __syncthreads();
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float k = keys[row0 + i];
      sum.x = fmaf(k, cells[i].x, sum.x);
      sum.y = fmaf(k, cells[i].y, sum.y);
      sum.z = fmaf(k, cells[i].z, sum.z);
      sum.w = fmaf(k, cells[i].w, sum.w);
    }
    partial[thread / kWarp][thread % kWarp] = sum;
    __syncthreads();
    if (thread < kMaxDeltaHeadDim) {
      float recall = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        recall += reinterpret_cast<const float*>(partial[w])[thread];
      }
      const float v = thread < dv ? qkv[2 * s.key_dim + head * s.value_head_dim + thread] : 0.0f;
      update[thread] = args.beta[row * s.num_value_heads + head] * fmaf(-decay, recall, v);
    }
    __syncthreads();
    const float4 u = *reinterpret_cast<const float4*>(&update[col0]);
    sum = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float k = keys[row0 + i];
      const float q = queries[row0 + i];
      cells[i].x = fmaf(k, u.x, decay * cells[i].x);
      cells[i].y = fmaf(k, u.y, decay * cells[i].y);
      cells[i].z = fmaf(k, u.z, decay * cells[i].z);
      cells[i].w = fmaf(k, u.w, decay * cells[i].w);
      sum.x = fmaf(q, cells[i].x, sum.x);
      sum.y = fmaf(q, cells[i].y, sum.y);
      sum.z = fmaf(q, cells[i].z, sum.z);
      sum.w = fmaf(q, cells[i].w, sum.w);
    }
    partial[thread / kWarp][thread % kWarp] = sum;
    __syncthreads();
    float out = 0;
    if (thread < kMaxDeltaHeadDim) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        out += reinterpret_cast<const float*>(partial[w])[thread];
      }
      const float square = WarpSum(thread < dv ? out * out : 0.0f);
      if (thread % kWarp == 0) squares[thread / kWarp] = square;
    }
    __syncthreads();
    if (thread < dv) {
      float mean = 0;
#pragma unroll
      for (int w = 0; w < kMaxDeltaHeadDim / kWarp; ++w) mean += squares[w];
      const float scale = 1.0f / sqrtf(mean / static_cast<float>(dv) + s.eps);
      const float z = args.qkvz[row * s.qkvz_dim + z_column + thread];
      args.out[row * s.value_dim + head * s.value_head_dim + thread] =
          out * scale * args.norm_weight[thread] * Silu(z);
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = row0 + i;
    if (row >= dk) continue;
    if (kExact) {
      *reinterpret_cast<float4*>(state + row * dv + col0) = cells[i];
    } else {
      float* to = state + row * dv;
      if (col0 + 0 < dv) to[col0 + 0] = cells[i].x;
      if (col0 + 1 < dv) to[col0 + 1] = cells[i].y;
      if (col0 + 2 < dv) to[col0 + 2] = cells[i].z;
      if (col0 + 3 < dv) to[col0 + 3] = cells[i].w;
    }
  }
}

}  // namespace

cudaError_t DeltaNetDecode(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream) {
  if (step.num_recurrent == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.shape.num_value_heads),
                  static_cast<unsigned>(step.num_recurrent));
  if (args.shape.key_head_dim == kMaxDeltaHeadDim &&
      args.shape.value_head_dim == kMaxDeltaHeadDim) {
    Launch(DecodeKernel<true>, grid, kThreads, 0, stream, step, args);
  } else {
    Launch(DecodeKernel<false>, grid, kThreads, 0, stream, step, args);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
