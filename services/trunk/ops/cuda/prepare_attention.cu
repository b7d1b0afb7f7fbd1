// Norm and rotation of queries in place and of keys into their pages; values into theirs.
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/paged_attention.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPerLane = kMaxAttentionHeadDim / kWarp;
constexpr int kRotatedPerLane = kPerLane / 2;  // pairs

// A warp per head of a row: query heads, then key-value heads.
__global__ void __launch_bounds__(kThreads)
    PrepareKernel(const StepTables step, const AttentionLaunch args) {
  LetNextStart();
  __shared__ float heads[kThreads / kWarp][kMaxAttentionHeadDim];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int head = static_cast<int>(blockIdx.y) * (kThreads / kWarp) + warp;
  const int64_t row = blockIdx.x;
  if (head >= args.num_heads + args.num_kv_heads) return;
  const int dim = args.head_dim;
  const bool is_query = head < args.num_heads;
  const int kv_head = head - args.num_heads;
  const int half = args.rotary_dim / 2;
  // The plan lies there since before the step's first kernel.
  const float* weight = is_query ? args.q_norm : args.k_norm;
  float weights[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = i * kWarp + lane;
    weights[i] = at < dim ? weight[at] : 0.0f;
  }
  float cosines[kRotatedPerLane];
  float sines[kRotatedPerLane];
#pragma unroll
  for (int i = 0; i < kRotatedPerLane; ++i) {
    const int at = i * kWarp + lane;
    cosines[i] = at < half ? step.rope_cos[row * half + at] : 0.0f;
    sines[i] = at < half ? step.rope_sin[row * half + at] : 0.0f;
  }
  int64_t base = 0;
  int token = 0;
  if (!is_query) {
    const int32_t first_page = step.segments[step.row_segment[row]].first_page;
    const int position = step.positions[row];
    const int64_t page = step.page_ids[first_page + position / kPageTokens];
    token = position % kPageTokens;
    base = (page * args.num_kv_heads + kv_head) * dim * kPageTokens;
  }
  AwaitOthers();

  float* query = args.q_gate + (row * args.num_heads + head) * 2 * dim;
  const float* x = is_query ? query : args.k + (row * args.num_kv_heads + kv_head) * dim;
  const float* v = args.v + (row * args.num_kv_heads + kv_head) * dim;
  float values[kPerLane];
  float to_cache[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = i * kWarp + lane;
    values[i] = at < dim ? x[at] : 0.0f;
    to_cache[i] = !is_query && at < dim ? v[at] : 0.0f;
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) squares = fmaf(values[i], values[i], squares);
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dim) + args.eps);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = i * kWarp + lane;
    if (at < dim) heads[warp][at] = values[i] * scale * (1.0f + weights[i]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRotatedPerLane; ++i) {
    const int at = i * kWarp + lane;
    if (at >= half) break;
    const float a = heads[warp][at];
    const float b = heads[warp][at + half];
    heads[warp][at] = fmaf(-b, sines[i], a * cosines[i]);
    heads[warp][at + half] = fmaf(a, sines[i], b * cosines[i]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = i * kWarp + lane;
    if (at >= dim) break;
    if (is_query) {
      query[at] = heads[warp][at];
      continue;
    }
    const int64_t key_at = base + int64_t{token} * dim + at;
    const int64_t value_at = base + int64_t{at} * kPageTokens + token;
    if (args.bf16_pages) {
      static_cast<__nv_bfloat16*>(args.key_pages)[key_at] = __float2bfloat16_rn(heads[warp][at]);
      static_cast<__nv_bfloat16*>(args.value_pages)[value_at] = __float2bfloat16_rn(to_cache[i]);
    } else {
      static_cast<float*>(args.key_pages)[key_at] = heads[warp][at];
      static_cast<float*>(args.value_pages)[value_at] = to_cache[i];
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
