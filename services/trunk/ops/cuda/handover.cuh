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

// Waits for the host's next release. All threads of a CTA; ends with a barrier.
__device__ __forceinline__ void AwaitRelease(const HandoverState* state,
                                             const HandoverFlags* flags) {
  if (threadIdx.x == 0) {
    const uint32_t wanted = state->to_device + 1;
    while (static_cast<int32_t>(flags->to_device - wanted) < 0) __nanosleep(20);
    __threadfence_system();
  }
  __syncthreads();
}

// The last of `ctas` counts the release as taken. One thread of each, after all of the CTA have
// passed AwaitRelease.
__device__ __forceinline__ void CountRelease(HandoverState* state, unsigned ctas) {
  if (ctas > 1) __threadfence();
  if (ctas == 1 || IsLastCta(state, ctas)) ++state->to_device;
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
  flags->to_host = ++state->to_host;
}

}  // namespace banyan::trunk::cuda
