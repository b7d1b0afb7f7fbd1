// Writes KernelStamp down, or does nothing. Device code only; included by launch.cuh.
#pragma once

#include <cuda_runtime.h>

#include "services/trunk/ops/cuda/kernel_stamps.h"

namespace banyan::trunk::cuda {

#ifdef BANYAN_KERNEL_STAMPS

constexpr uint32_t kMostStamps = 1 << 16;
static __device__ KernelStamp kernel_stamps[kMostStamps];
static __device__ uint32_t num_kernel_stamps;

static const bool stamped_file_registered = [] {
  StampedFiles().push_back(
      {__BASE_FILE__,
       [] {
         const uint32_t none = 0;
         cudaMemcpyToSymbol(num_kernel_stamps, &none, sizeof none);
       },
       [] {
         uint32_t count = 0;
         cudaMemcpyFromSymbol(&count, num_kernel_stamps, sizeof count);
         std::vector<KernelStamp> stamps(count < kMostStamps ? count : kMostStamps);
         if (!stamps.empty()) {
           cudaMemcpyFromSymbol(stamps.data(), kernel_stamps, stamps.size() * sizeof(KernelStamp));
         }
         return stamps;
       }});
  return true;
}();

__device__ __forceinline__ uint64_t DeviceTime() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

// Of this CTA.
__device__ __forceinline__ KernelStamp*& StampHere() {
  __shared__ KernelStamp* stamp;
  return stamp;
}

__device__ __forceinline__ void StampStarted() {
  if (threadIdx.x != 0) return;
  KernelStamp* const stamp = &kernel_stamps[atomicAdd(&num_kernel_stamps, 1u) % kMostStamps];
  StampHere() = stamp;
  *stamp = {DeviceTime(), 0, gridDim.x * gridDim.y * gridDim.z, blockDim.x,
            blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)};
}

__device__ __forceinline__ void StampWaited() {
  if (threadIdx.x == 0) StampHere()->waited = DeviceTime();
}

#else

__device__ __forceinline__ void StampStarted() {}
__device__ __forceinline__ void StampWaited() {}

#endif

}  // namespace banyan::trunk::cuda
