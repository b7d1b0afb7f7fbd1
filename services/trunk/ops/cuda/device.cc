#include "services/trunk/ops/cuda/device.h"

#include <cuda_runtime_api.h>

#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/trunk/ops/cuda/cuda_status.h"
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/linear.h"
#include "services/trunk/ops/cuda/linear_hopper.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kLeastComputeMajor = 8;
// The context holds as much local memory as the threads that a device can run at once may want, 1
// KiB each unless this is said: it takes 552 MB of an H200, and 345 so. Our kernels want at most
// 168 bytes (ptxas, sm_90); for one that wants more the driver takes more.
constexpr size_t kStackBytes = 256;

std::string VersionText(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

absl::Status NoDevice(cudaError_t error) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return FailedPreconditionF("no NVIDIA driver on this machine");
  if (error == cudaErrorInsufficientDriver || error == cudaErrorCallRequiresNewerDriver) {
    return FailedPreconditionF("the NVIDIA driver speaks CUDA {}, expected {} or newer",
                               VersionText(driver), VersionText(CUDART_VERSION));
  }
  if (error == cudaErrorNoDevice) return FailedPreconditionF("no NVIDIA GPU on this machine");
  return CudaStatus(error, "looking for a GPU");
}

}  // namespace

int DeviceCount() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

bool HasDevice() { return DeviceCount() > 0; }

absl::StatusOr<DeviceFacts> OpenDevice(int ordinal) {
  int count = 0;
  if (cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return NoDevice(error);
  if (ordinal < 0 || ordinal >= count) {
    return InvalidArgumentF("GPU {}: this machine has {}", ordinal, count);
  }
  cudaDeviceProp properties;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, ordinal), "GPU properties"));
  DeviceFacts facts;
  facts.ordinal = ordinal;
  facts.name = properties.name;
  facts.compute_major = properties.major;
  facts.compute_minor = properties.minor;
  facts.num_sms = properties.multiProcessorCount;
  facts.shared_bytes = static_cast<int32_t>(properties.sharedMemPerBlockOptin);
  facts.l2_bytes = properties.l2CacheSize;
  facts.total_bytes = properties.totalGlobalMem;
  if (facts.compute_major < kLeastComputeMajor) {
    return FailedPreconditionF("GPU {} ({}): compute capability {}.{}, expected {}.0 or newer",
                               ordinal, facts.name, facts.compute_major, facts.compute_minor,
                               kLeastComputeMajor);
  }
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(ordinal), "cudaSetDevice"));
  // A step waits for the device often and briefly.
  RETURN_IF_ERROR(CudaStatus(cudaSetDeviceFlags(cudaDeviceScheduleSpin | cudaDeviceMapHost),
                             "cudaSetDeviceFlags"));
  RETURN_IF_ERROR(
      CudaStatus(cudaDeviceSetLimit(cudaLimitStackSize, kStackBytes), "cudaDeviceSetLimit"));
  facts.clusters = facts.compute_major >= 9;
  facts.hopper = HopperTilesBuilt() && facts.compute_major == 9 && facts.compute_minor == 0;
  std::vector<cudaError_t (*)()> kernels = {PrepareLinear, PrepareDeltaNetChunks,
                                            PrepareDeltaNetPrefill};
  if (facts.hopper) kernels.push_back(PrepareHopperTiles);
  for (const auto prepare : kernels) {
    const cudaError_t error = prepare();
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
      return FailedPreconditionF(
          "GPU {} ({}, compute capability {}.{}): this binary holds no code for it "
          "(BANYAN_CUDA_ARCHITECTURES)",
          ordinal, facts.name, facts.compute_major, facts.compute_minor);
    }
    RETURN_IF_ERROR(CudaStatus(error, "loading kernels"));
  }
  size_t free = 0;
  size_t total = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  facts.free_bytes = free;
  return facts;
}

}  // namespace banyan::trunk::cuda
