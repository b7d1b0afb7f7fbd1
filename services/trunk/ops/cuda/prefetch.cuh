// Weights on their way to the second-level cache while kernels run that leave the memory idle.
// Device code only.
#pragma once

#include <cuda_runtime.h>

#include "services/trunk/ops/cuda/prefetch.h"

namespace banyan::trunk::cuda {

// CTA `cta` of kPrefetchCtas asks for its share of the ranges, line by line. Reads nothing that
// waits for others.
__device__ __forceinline__ void PrefetchShare(const Prefetch& prefetch, int cta) {
  constexpr int64_t kLine = 128;
  const int64_t step = int64_t{kPrefetchCtas} * blockDim.x * kLine;
  const int64_t first = (int64_t{cta} * blockDim.x + threadIdx.x) * kLine;
  for (int r = 0; r < prefetch.num_ranges; ++r) {
    const auto* const from = static_cast<const unsigned char*>(prefetch.ranges[r].from);
    for (int64_t at = first; at < prefetch.ranges[r].bytes; at += step) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
    }
  }
}

}  // namespace banyan::trunk::cuda
