// The device's side of hand-overs, for kernels that take part in one. Device code only.
#pragma once

#include <cuda_runtime.h>

#include "services/trunk/ops/cuda/handover.h"

namespace banyan::trunk::cuda {

// Whether the calling CTA is the last one of `ctas` to come here. One thread asks.
__device__ __forceinline__ bool IsLastCta(HandoverState* state, unsigned ctas) {
  if (atomicAdd(&state->ctas_done, 1) + 1 != ctas) return false;
  state->ctas_done = 0;
  return true;
}

__device__ __forceinline__ HandoverCounts CountsOf(const ReleaseTurn& turn) {
  HandoverCounts counts = turn.counts;
  if (turn.before != nullptr) {
    counts.to_host += turn.before->to_host;
    counts.to_device += turn.before->to_device;
  }
  return counts;
}

// Whether a count has come to `wanted`.
__device__ __forceinline__ bool Reached(uint32_t count, uint32_t wanted) {
  return static_cast<int32_t>(count - wanted) >= 0;
}

__device__ __forceinline__ uint32_t ReadAgain(const uint32_t& count) {
  return *static_cast<const volatile uint32_t*>(&count);
}

// Whether the host has been asked so many times.
__device__ __forceinline__ bool IsAsked(const HandoverState* state, uint32_t wanted) {
  return Reached(ReadAgain(state->to_host), wanted);
}

// Whether kernels have seen so many releases.
__device__ __forceinline__ bool AreReleased(const HandoverState* state, uint32_t wanted) {
  return Reached(ReadAgain(state->released), wanted);
}

// Waits for a release by the host; what it wrote before is there then. All threads of a grid's
// CTAs; ends with a barrier of each. The first CTA looks at host memory, and the others at what it
// says: sixteen that look themselves wait four times as long as one (H200). And it does so when the
// host has been asked, not before: reads on the link delay the writes that ask.
//
// Need not come after AwaitOthers: it reads counts alone, and the kernels before this one are all
// on the device when this one is, and never wait for it.
__device__ __forceinline__ void AwaitRelease(const ReleaseTurn& turn, HandoverState* state,
                                             const HandoverFlags* flags) {
  if (threadIdx.x == 0) {
    const HandoverCounts wanted = CountsOf(turn);
    if (blockIdx.x + blockIdx.y == 0) {
      while (!IsAsked(state, wanted.to_host)) __nanosleep(20);
      while (!Reached(flags->to_device, wanted.to_device)) __nanosleep(20);
      __threadfence_system();
      *static_cast<volatile uint32_t*>(&state->released) = wanted.to_device;
    } else {
      while (!AreReleased(state, wanted.to_device)) __nanosleep(20);
      __threadfence();
    }
  }
  __syncthreads();
}

// Shows the host what all CTAs wrote before. All threads; the last of `ctas` raises the flag.
__device__ __forceinline__ void RaiseToHost(HandoverState* state, HandoverFlags* flags,
                                            unsigned ctas) {
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (ctas > 1) {
    if (!IsLastCta(state, ctas)) return;
    __threadfence_system();
  }
  const uint32_t count = state->to_host + 1;
  flags->to_host = count;
  *static_cast<volatile uint32_t*>(&state->to_host) = count;
}

}  // namespace banyan::trunk::cuda
