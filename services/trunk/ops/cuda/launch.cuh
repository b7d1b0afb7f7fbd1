// How our kernels are launched: most may start while the one before it is still running (compute
// capability 9.0 on), waits before it touches anything that another kernel wrote, and lets the next
// one start at once. Waits are transitive, since every kernel waits. What does not depend on other
// kernels, above all weights on their way to the processors, need not wait.
#pragma once

#include <cuda_runtime.h>

#include "services/trunk/ops/cuda/kernel_stamps.cuh"

namespace banyan::trunk::cuda {

// The first statement of kernels that Launch starts.
__device__ __forceinline__ void LetNextStart() {
  StampStarted();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Before the first access to memory that other kernels or copies write.
__device__ __forceinline__ void AwaitOthers() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  StampWaited();
}

// A load that stays before AwaitOthers, of what no other kernel writes. ptxas moves loads behind it
// that it takes to be of constants: ld.global.nc, volatile or not, which nvcc makes of plain reads
// too.
__device__ __forceinline__ float LoadEarly(const float* p) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ float4 LoadEarly(const float4* p) {
  float4 v;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
// So many neighbours, aligned as such a vector.
template <int kCount>
__device__ __forceinline__ void LoadEarly(const float* p, float (&v)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  if constexpr (kCount == 1) {
    v[0] = LoadEarly(p);
  } else if constexpr (kCount == 2) {
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v[0]), "=f"(v[1]) : "l"(p) : "memory");
  } else {
    const float4 all = LoadEarly(reinterpret_cast<const float4*>(p));
    v[0] = all.x;
    v[1] = all.y;
    v[2] = all.z;
    v[3] = all.w;
  }
}

// Both, for kernels with nothing to do before.
__device__ __forceinline__ void BeginKernel() {
  LetNextStart();
  AwaitOthers();
}

inline bool OverlapAllowed() {
  static const bool allowed = [] {
    int device = 0;
    int major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
  }();
  return allowed;
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchWith(cudaLaunchAttribute* attributes, unsigned num_attributes,
                       void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                       cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

inline cudaLaunchAttribute EarlyStart() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute early = EarlyStart();
  return LaunchWith(&early, OverlapAllowed() ? 1 : 0, kernel, grid, threads, shared_bytes, stream,
                    arguments...);
}

// A launch that starts when all before it has ended, for kernels that run long: their CTAs then
// spread over the whole device instead of filling what the kernel before leaves (delta_net_prefill
// took a third longer so, H200). Such kernels need not begin with either of the above.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchAlone(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                        cudaStream_t stream, const Arguments&... arguments) {
  return LaunchWith(nullptr, 0, kernel, grid, threads, shared_bytes, stream, arguments...);
}

inline cudaLaunchAttribute ClusterOf(unsigned ctas) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = ctas;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  return attribute;
}

// Clusters of so many neighbouring CTAs of the grid's rows. Compute capability 9.0 on.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchClusters(void (*kernel)(Parameters...), unsigned ctas, dim3 grid, int threads,
                           size_t shared_bytes, cudaStream_t stream,
                           const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {EarlyStart(), ClusterOf(ctas)};
  return LaunchWith(attributes, 2, kernel, grid, threads, shared_bytes, stream, arguments...);
}

}  // namespace banyan::trunk::cuda
