// Weights on their way to the second-level cache while kernels run that leave the memory idle.
// Device code only.
#pragma once

#include <cuda_runtime.h>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/prefetch.h"

namespace banyan::trunk::cuda {

// A warp of CTA `cta` of kPrefetchCtas asks for the CTA's share of the ranges, 32 KiB at a time,
// until `enough` says so. Reads nothing that waits for others.
template <typename Enough>
__device__ __forceinline__ void PrefetchShare(const Prefetch& prefetch, int cta,
                                              const Enough& enough) {
  constexpr int64_t kPiece = 32 << 10;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = 0; r < prefetch.num_ranges; ++r) {
    const auto* const from = static_cast<const unsigned char*>(prefetch.ranges[r].from);
    const int64_t bytes = prefetch.ranges[r].bytes;
    for (int64_t at = cta * kPiece; at < bytes && !enough(); at += kPrefetchCtas * kPiece) {
      const int64_t left = min(bytes - at, kPiece);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      if (lane != 0) continue;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from + at),
                   "r"(static_cast<uint32_t>(left))
                   : "memory");
#else
      for (int64_t line = lane * 128; line < left; line += kWarp * 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at + line));
      }
#endif
    }
  }
}

}  // namespace banyan::trunk::cuda
