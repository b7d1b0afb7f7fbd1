// CTAs of a cluster among themselves. On devices of compute capability 9.0 on; elsewhere there are
// no clusters, and nothing here does anything.
#pragma once

#include <cstdint>

namespace banyan::trunk::cuda {

// A barrier of a cluster's CTAs, in two halves, of reads whose values their threads have used: it
// need not make writes known, for which all of a thread's are waited for. By all threads.
__device__ __forceinline__ void ClusterArrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void ClusterWait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ int ClusterRank() {
  uint32_t rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

}  // namespace banyan::trunk::cuda
