#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/handover.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/router_topk.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;

// A warp routes a row. Lane l holds experts l, l + 32, ...: kPerLane of them, -1 where there is
// none or it is taken. `store(k, id, weight, false)` is called by lane k % 32 for each of the
// top_k; `store(k, 0, total, true)` later divides the weight it stored before.
template <int kPerLane, typename Store>
__device__ __forceinline__ void RouteRow(int64_t row, int32_t num_experts, int32_t top_k,
                                         bool renormalize, const float* logits,
                                         const Store& store) {
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
  float chosen = 0;  // of this lane among the latest 32
  int chosen_at = 0;
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
    if (k % kWarp == lane) {
      chosen = best;
      chosen_at = best_at;
    }
    // More than 32 experts a row: what lanes hold goes out before it is overwritten, unscaled.
    if (k % kWarp == kWarp - 1 && k + 1 < top_k)
      store(k - kWarp + 1 + lane, chosen_at, chosen, false);
  }
  const int last = (top_k - 1) / kWarp * kWarp + lane;
  if (last < top_k) store(last, chosen_at, renormalize ? chosen / total : chosen, false);
  if (!renormalize) return;
  for (int k = lane; k < (top_k - 1) / kWarp * kWarp; k += kWarp) store(k, 0, total, true);
}

template <int kPerLane>
__global__ void __launch_bounds__(kThreads)
    RouterKernel(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                 const float* logits, uint16_t* ids, float* weights) {
  BeginKernel();
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  RouteRow<kPerLane>(row, num_experts, top_k, renormalize, logits,
                     [&](int k, int id, float weight, bool divide) {
                       const int64_t at = row * top_k + k;
                       if (divide) {
                         weights[at] /= weight;
                       } else {
                         ids[at] = static_cast<uint16_t>(id);
                         weights[at] = weight;
                       }
                     });
}

constexpr int kHandThreads = 256;

// A CTA a row: its first warp routes it, the others meanwhile bring the row to the host.
template <int kPerLane>
__global__ void __launch_bounds__(kHandThreads) RouteAndHandKernel(const RouteLaunch args) {
  BeginKernel();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kWarp) {
    RouteRow<kPerLane>(row, args.num_experts, args.top_k, args.renormalize, args.logits,
                       [&](int k, int id, float weight, bool divide) {
                         const int64_t at = row * args.top_k + k;
                         if (divide) {
                           weight = args.weights[at] / weight;
                         } else {
                           args.ids[at] = static_cast<uint16_t>(id);
                           args.host_ids[at] = static_cast<uint16_t>(id);
                         }
                         args.weights[at] = weight;
                         args.host_weights[at] = weight;
                       });
  } else {
    const int64_t pieces = args.hidden_size / 4;
    const auto* from = reinterpret_cast<const float4*>(args.input) + row * pieces;
    if (args.bf16_rows) {
      auto* to = static_cast<uint2*>(args.host_rows) + row * pieces;
      for (int64_t i = thread - kWarp; i < pieces; i += kHandThreads - kWarp) {
        const float4 v = from[i];
        to[i] = {RoundToBf16(v.x, v.y), RoundToBf16(v.z, v.w)};
      }
    } else {
      auto* to = static_cast<float4*>(args.host_rows) + row * pieces;
      for (int64_t i = thread - kWarp; i < pieces; i += kHandThreads - kWarp) to[i] = from[i];
    }
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
