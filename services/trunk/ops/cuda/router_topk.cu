#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/handover.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/router_topk.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;

// A logit and the expert that it is of, in order: larger logits have larger keys, and of equal ones
// the lower id. Numbers come before what is none.
using Candidate = uint64_t;

__device__ __forceinline__ Candidate CandidateOf(float logit, int expert) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 is 0
  uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  if (logit != logit) key = 1;
  return static_cast<Candidate>(key) << 32 | static_cast<uint32_t>(~expert);
}
__device__ __forceinline__ uint32_t KeyOf(Candidate c) { return static_cast<uint32_t>(c >> 32); }
__device__ __forceinline__ int ExpertOf(Candidate c) { return ~static_cast<int>(c); }
__device__ __forceinline__ float LogitOf(Candidate c) {
  const uint32_t key = KeyOf(c);
  if (key == 1) return NAN;
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// exp(logit - max), 0 where that is no number.
__device__ __forceinline__ float ExpOf(float logit, float max) {
  const float e = expf(logit - max);
  return e >= 0 ? e : 0;
}

// Ids and weights of the top_k candidates, best first, to `store(k, id, weight)`. By a warp.
template <typename Store>
__device__ __forceinline__ void WeighChosen(const Candidate* chosen, int32_t num_experts,
                                            int32_t top_k, bool renormalize, const float* logits,
                                            const Store& store) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float max = LogitOf(chosen[0]);
  float sum = 0;
  if (renormalize) {
    for (int32_t k = lane; k < top_k; k += kWarp) sum += ExpOf(LogitOf(chosen[k]), max);
  } else {
    for (int32_t e = lane; e < num_experts; e += kWarp) sum += ExpOf(logits[e], max);
  }
  sum = WarpSum(sum);
  for (int32_t k = lane; k < top_k; k += kWarp) {
    store(k, ExpertOf(chosen[k]), ExpOf(LogitOf(chosen[k]), max) / sum);
  }
}

__device__ __forceinline__ Candidate WarpBest(Candidate mine) {
  const uint32_t key = __reduce_max_sync(kAllLanes, KeyOf(mine));
  const uint32_t low =
      __reduce_max_sync(kAllLanes, KeyOf(mine) == key ? static_cast<uint32_t>(mine) : 0u);
  return static_cast<Candidate>(key) << 32 | low;
}

// Many rows: a warp for each. Lane l holds experts l, l + 32, ...: kPerLane of them, 0 where there
// is none or it is taken.
template <int kPerLane>
__global__ void __launch_bounds__(kThreads)
    RouterKernel(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                 const float* logits, uint16_t* ids, float* weights) {
  BeginKernel();
  extern __shared__ Candidate chosen_of_all[];  // [warps, top_k]
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + warp;
  if (row >= num_rows) return;
  logits += row * num_experts;
  Candidate held[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = i * kWarp + lane;
    held[i] = expert < num_experts ? CandidateOf(logits[expert], expert) : 0;
  }
  Candidate* const chosen = chosen_of_all + warp * top_k;
  for (int32_t k = 0; k < top_k; ++k) {
    Candidate mine = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) mine = max(mine, held[i]);
    const Candidate best = WarpBest(mine);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (held[i] == best) held[i] = 0;
    }
    if (lane == 0) chosen[k] = best;
  }
  __syncwarp();
  WeighChosen(chosen, num_experts, top_k, renormalize, logits,
              [&](int32_t k, int id, float weight) {
                ids[row * top_k + k] = static_cast<uint16_t>(id);
                weights[row * top_k + k] = weight;
              });
}

constexpr int kHandThreads = 256;
constexpr int kHandWarps = kHandThreads / kWarp;

// Few rows: a CTA for each. Not one after the other, as above: each warp finds how much a logit
// must be for `top_k` to be at least as much, and what is no less than the least of these is ranked
// by comparing all with all. That is some 50 of 512 where logits are drawn alike.
template <int kPerThread>
__device__ __forceinline__ void ChooseByRank(int32_t num_experts, int32_t top_k,
                                             const float (&logits)[kPerThread], Candidate* list,
                                             Candidate* chosen) {
  __shared__ uint32_t enough[kHandWarps];
  __shared__ int32_t count;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  Candidate held[kPerThread];
  uint32_t left[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int expert = i * kHandThreads + thread;
    held[i] = expert < num_experts ? CandidateOf(logits[i], expert) : 0;
    left[i] = KeyOf(held[i]);
  }
  if (thread == 0) count = 0;
  uint32_t least = 0;
  for (int32_t found = 0; found < top_k; found += kHandWarps) {
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) mine = max(mine, left[i]);
    least = __reduce_max_sync(kAllLanes, mine);
    // One of those that are as large.
    const bool first = lane == __ffs(static_cast<int>(__ballot_sync(kAllLanes, mine == least))) - 1;
    bool taken = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const bool takes = first && !taken && left[i] == least;
      taken |= takes;
      if (takes) left[i] = 0;
    }
  }
  if (lane == 0) enough[thread / kWarp] = least;
  __syncthreads();
  least = enough[0];
#pragma unroll
  for (int w = 1; w < kHandWarps; ++w) least = min(least, enough[w]);
  unsigned staying[kPerThread];
  int32_t all = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    staying[i] = __ballot_sync(kAllLanes, held[i] != 0 && KeyOf(held[i]) >= least);
    all += __popc(staying[i]);
  }
  int32_t at = 0;
  if (lane == 0 && all > 0) at = atomicAdd(&count, all);
  at = __shfl_sync(kAllLanes, at, 0);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if ((staying[i] >> lane & 1) != 0) list[at + __popc(staying[i] & ((1u << lane) - 1))] = held[i];
    at += __popc(staying[i]);
  }
  __syncthreads();
  for (int32_t mine_at = thread; mine_at < count; mine_at += kHandThreads) {
    const Candidate mine = list[mine_at];
    int32_t rank = 0;
#pragma unroll 8
    for (int32_t i = 0; i < count; ++i) rank += list[i] > mine ? 1 : 0;
    if (rank < top_k) chosen[rank] = mine;
  }
  __syncthreads();
}

template <int kPerThread>
__global__ void __launch_bounds__(kHandThreads) RouteAndHandKernel(const RouteLaunch args) {
  extern __shared__ Candidate chosen[];  // [top_k]
  __shared__ Candidate list[kPerThread * kHandThreads];
  BeginKernel();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const float* const row_logits = args.logits + row * args.num_experts;
  float logits[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int expert = i * kHandThreads + thread;
    logits[i] = expert < args.num_experts ? row_logits[expert] : 0;
  }
  const int64_t pieces = args.hidden_size / 4;
  const auto* from = reinterpret_cast<const float4*>(args.input) + row * pieces;
  if (args.bf16_rows) {
    auto* to = static_cast<uint2*>(args.host_rows) + row * pieces;
#pragma unroll 2
    for (int64_t i = thread; i < pieces; i += kHandThreads) {
      const float4 v = from[i];
      to[i] = {RoundToBf16(v.x, v.y), RoundToBf16(v.z, v.w)};
    }
  } else {
    auto* to = static_cast<float4*>(args.host_rows) + row * pieces;
#pragma unroll 2
    for (int64_t i = thread; i < pieces; i += kHandThreads) to[i] = from[i];
  }
  ChooseByRank<kPerThread>(args.num_experts, args.top_k, logits, list, chosen);
  if (thread < kWarp) {
    WeighChosen(chosen, args.num_experts, args.top_k, args.renormalize, row_logits,
                [&](int32_t k, int id, float weight) {
                  const int64_t at = row * args.top_k + k;
                  args.ids[at] = static_cast<uint16_t>(id);
                  args.host_ids[at] = static_cast<uint16_t>(id);
                  args.weights[at] = weight;
                  args.host_weights[at] = weight;
                });
  }
  RaiseToHost(args.state, args.flags, gridDim.x);
}

size_t ChosenBytes(int32_t top_k) { return static_cast<size_t>(top_k) * sizeof(Candidate); }

template <int kPerLane>
void LaunchRouter(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                  const float* logits, uint16_t* ids, float* weights, cudaStream_t stream) {
  const int per_cta = kThreads / kWarp;
  Launch(RouterKernel<kPerLane>, static_cast<unsigned>((num_rows + per_cta - 1) / per_cta),
         kThreads, per_cta * ChosenBytes(top_k), stream, num_rows, num_experts, top_k, renormalize,
         logits, ids, weights);
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
  const size_t shared = ChosenBytes(args.top_k);
  if (args.num_experts <= 2 * kHandThreads) {
    Launch(RouteAndHandKernel<2>, ctas, kHandThreads, shared, stream, args);
  } else {
    Launch(RouteAndHandKernel<kMaxRouterExperts / kHandThreads>, ctas, kHandThreads, shared, stream,
           args);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
