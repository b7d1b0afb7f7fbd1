// Norm and rotation of queries in place and of keys into their pages; values into theirs.
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/paged_attention.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPerLane = kMaxAttentionHeadDim / kWarp;

// A warp per head of a row: query heads, then key-value heads.
__global__ void __launch_bounds__(kThreads)
    PrepareKernel(const StepTables step, const AttentionLaunch args) {
  BeginKernel();
  __shared__ float heads[kThreads / kWarp][kMaxAttentionHeadDim];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int head = static_cast<int>(blockIdx.y) * (kThreads / kWarp) + warp;
  const int64_t row = blockIdx.x;
  if (head >= args.num_heads + args.num_kv_heads) return;
  const int dim = args.head_dim;
  const bool is_query = head < args.num_heads;
  const int kv_head = head - args.num_heads;
  float* query = args.q_gate + (row * args.num_heads + head) * 2 * dim;
  const float* x = is_query ? query : args.k + (row * args.num_kv_heads + kv_head) * dim;
  const float* weight = is_query ? args.q_norm : args.k_norm;

  float values[kPerLane];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = i * kWarp + lane;
    values[i] = at < dim ? x[at] : 0.0f;
    squares = fmaf(values[i], values[i], squares);
  }
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dim) + args.eps);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = i * kWarp + lane;
    if (at < dim) heads[warp][at] = values[i] * scale * (1.0f + weight[at]);
  }
  __syncwarp();
  const int half = args.rotary_dim / 2;
  for (int i = lane; i < half; i += kWarp) {
    const float a = heads[warp][i];
    const float b = heads[warp][i + half];
    const float c = step.rope_cos[row * half + i];
    const float s = step.rope_sin[row * half + i];
    heads[warp][i] = fmaf(-b, s, a * c);
    heads[warp][i + half] = fmaf(a, s, b * c);
  }
  __syncwarp();
  if (is_query) {
    for (int i = lane; i < dim; i += kWarp) query[i] = heads[warp][i];
    return;
  }
  const Segment segment = step.segments[step.row_segment[row]];
  const int position = step.positions[row];
  const int64_t page = step.page_ids[segment.first_page + position / kPageTokens];
  const int token = position % kPageTokens;
  const int64_t base = (page * args.num_kv_heads + kv_head) * dim * kPageTokens;
  const float* value = args.v + (row * args.num_kv_heads + kv_head) * dim;
  for (int i = lane; i < dim; i += kWarp) {
    const int64_t key_at = base + int64_t{token} * dim + i;
    const int64_t value_at = base + int64_t{i} * kPageTokens + token;
    if (args.bf16_pages) {
      static_cast<__nv_bfloat16*>(args.key_pages)[key_at] = __float2bfloat16_rn(heads[warp][i]);
      static_cast<__nv_bfloat16*>(args.value_pages)[value_at] = __float2bfloat16_rn(value[i]);
    } else {
      static_cast<float*>(args.key_pages)[key_at] = heads[warp][i];
      static_cast<float*>(args.value_pages)[value_at] = value[i];
    }
  }
}

}  // namespace

cudaError_t PrepareAttention(const StepTables& step, const AttentionLaunch& args,
                             cudaStream_t stream) {
  if (step.num_rows == 0) return cudaSuccess;
  const int per_cta = kThreads / kWarp;
  const dim3 grid(
      static_cast<unsigned>(step.num_rows),
      static_cast<unsigned>((args.num_heads + args.num_kv_heads + per_cta - 1) / per_cta));
  Launch(PrepareKernel, grid, kThreads, 0, stream, step, args);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
