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

// The same place in another CTA's shared memory, of a shared address.
__device__ __forceinline__ uint32_t OfRank(uint32_t shared, int rank) {
  uint32_t at = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared), "r"(rank));
#endif
  return at;
}

// Writes to such a place and tells `barrier`, of the same CTA, of the 16 bytes.
__device__ __forceinline__ void Send(uint32_t to, const float (&v)[4], uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
      : "memory");
#endif
}

}  // namespace banyan::trunk::cuda
