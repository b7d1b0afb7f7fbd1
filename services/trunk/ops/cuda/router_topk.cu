#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/handover.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/router_topk.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;

// A warp routes a row. Lane l holds experts l, l + 32, ...: kPerLane of them, -1 where there is
// none or it is taken.
template <int kPerLane>
__device__ __forceinline__ void RouteRow(int64_t row, int32_t num_experts, int32_t top_k,
                                         bool renormalize, const float* logits, uint16_t* ids,
                                         float* weights) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
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
    float mine = -1;
    int mine_at = num_experts;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (p[i] > mine) {
        mine = p[i];
        mine_at = i * kWarp + lane;
      }
    }
    // Bits of floats that are not negative are ordered as the floats; 0 where a lane has none left.
    const unsigned bits = mine < 0 ? 0u : __float_as_uint(mine) + 1;
    const unsigned most = __reduce_max_sync(kAllLanes, bits);
    const float best = __uint_as_float(most - 1);
    const int best_at = static_cast<int>(
        __reduce_min_sync(kAllLanes, bits == most ? static_cast<unsigned>(mine_at)
                                                  : static_cast<unsigned>(num_experts)));
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
__global__ void __launch_bounds__(kThreads)
    RouterKernel(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                 const float* logits, uint16_t* ids, float* weights) {
  BeginKernel();
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  RouteRow<kPerLane>(row, num_experts, top_k, renormalize, logits, ids, weights);
}

constexpr int kHandThreads = 256;

// A CTA a row: its first warp routes it, the others meanwhile bring the row to the host.
template <int kPerLane>
__global__ void __launch_bounds__(kHandThreads) RouteAndHandKernel(const RouteLaunch args) {
  BeginKernel();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kWarp) {
    RouteRow<kPerLane>(row, args.num_experts, args.top_k, args.renormalize, args.logits, args.ids,
                       args.weights);
    __syncwarp();
    for (int k = thread; k < args.top_k; k += kWarp) {
      args.host_ids[row * args.top_k + k] = args.ids[row * args.top_k + k];
      args.host_weights[row * args.top_k + k] = args.weights[row * args.top_k + k];
    }
  } else {
    const int64_t pieces = args.hidden_size / 4;
    const auto* from = reinterpret_cast<const float4*>(args.input) + row * pieces;
    auto* to = reinterpret_cast<float4*>(args.host_input) + row * pieces;
    for (int64_t i = thread - kWarp; i < pieces; i += kHandThreads - kWarp) to[i] = from[i];
  }
  RaiseToHost(args.state, args.flags, gridDim.x);
}

template <int kPerLane>
void LaunchRouter(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                  const float* logits, uint16_t* ids, float* weights, cudaStream_t stream) {
  const int per_cta = kThreads / kWarp;
  Launch(RouterKernel<kPerLane>, static_cast<unsigned>((num_rows + per_cta - 1) / per_cta),
         kThreads, 0, stream, num_rows, num_experts, top_k, renormalize, logits, ids, weights);
}

}  // namespace

cudaError_t RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                       const float* logits, uint16_t* ids, float* weights, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  if (num_experts <= 128) {
    LaunchRouter<4>(num_rows, num_experts, top_k, renormalize, logits, ids, weights, stream);
  } else if (num_experts <= 512) {
    LaunchRouter<16>(num_rows, num_experts, top_k, renormalize, logits, ids, weights, stream);
  } else {
    LaunchRouter<kMaxRouterExperts / kWarp>(num_rows, num_experts, top_k, renormalize, logits, ids,
                                            weights, stream);
  }
  return cudaPeekAtLastError();
}

bool TakesRouteAndHand(int32_t num_rows, int32_t hidden_size) {
  return num_rows <= kMostHandedRows && hidden_size % 4 == 0;
}

cudaError_t RouteAndHand(int32_t num_rows, const RouteLaunch& args, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  const auto ctas = static_cast<unsigned>(num_rows);
  if (args.num_experts <= 128) {
    Launch(RouteAndHandKernel<4>, ctas, kHandThreads, 0, stream, args);
  } else if (args.num_experts <= 512) {
    Launch(RouteAndHandKernel<16>, ctas, kHandThreads, 0, stream, args);
  } else {
    Launch(RouteAndHandKernel<kMaxRouterExperts / kWarp>, ctas, kHandThreads, 0, stream, args);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
