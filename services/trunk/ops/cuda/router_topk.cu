#include "services/trunk/ops/cuda/router_topk.h"

#include "services/trunk/ops/cuda/device.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;

// Lane l holds experts l, l + 32, ...: kPerLane of them, -1 where there is none or it is taken.
template <int kPerLane>
__global__ void __launch_bounds__(kThreads)
    RouterKernel(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                 const float* logits, uint16_t* ids, float* weights) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  logits += row * num_experts;
  float p[kPerLane];
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = i * kWarp + lane;
    p[i] = expert < num_experts ? logits[expert] : -INFINITY;
    max = fmaxf(max, p[i]);
  }
  max = WarpMax(max);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i * kWarp + lane < num_experts) {
      p[i] = expf(p[i] - max);
      sum += p[i];
    }
  }
  sum = WarpSum(sum);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const bool there = i * kWarp + lane < num_experts;
    p[i] = p[i] / sum;
    if (!(p[i] >= 0)) p[i] = 0;  // broken logits: still distinct ids
    if (!there) p[i] = -1;
  }
  float total = 0;
  for (int32_t k = 0; k < top_k; ++k) {
    float best = -1;
    int best_at = num_experts;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (p[i] > best) {
        best = p[i];
        best_at = i * kWarp + lane;
      }
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, offset);
      const int other_at = __shfl_xor_sync(kAllLanes, best_at, offset);
      if (other > best || (other == best && other_at < best_at)) {
        best = other;
        best_at = other_at;
      }
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (i * kWarp + lane == best_at) p[i] = -1;
    }
    total += best;
    if (lane == 0) {
      ids[row * top_k + k] = static_cast<uint16_t>(best_at);
      weights[row * top_k + k] = best;
    }
  }
  if (!renormalize) return;
  __syncwarp();
  for (int32_t k = lane; k < top_k; k += kWarp) weights[row * top_k + k] /= total;
}

template <int kPerLane>
void Launch(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
            const float* logits, uint16_t* ids, float* weights, cudaStream_t stream) {
  const int per_cta = kThreads / kWarp;
  RouterKernel<kPerLane><<<static_cast<unsigned>((num_rows + per_cta - 1) / per_cta), kThreads, 0,
                           stream>>>(num_rows, num_experts, top_k, renormalize, logits, ids,
                                     weights);
}

}  // namespace

cudaError_t RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                       const float* logits, uint16_t* ids, float* weights, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  if (num_experts <= 128) {
    Launch<4>(num_rows, num_experts, top_k, renormalize, logits, ids, weights, stream);
  } else if (num_experts <= 512) {
    Launch<16>(num_rows, num_experts, top_k, renormalize, logits, ids, weights, stream);
  } else {
    Launch<kMaxRouterExperts / kWarp>(num_rows, num_experts, top_k, renormalize, logits, ids,
                                      weights, stream);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
