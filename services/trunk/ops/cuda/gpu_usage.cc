#include "services/trunk/ops/cuda/gpu_usage.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <array>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {
namespace {

// The few declarations of NVML that are needed; its interface is stable by name.
using NvmlDevice = void*;
struct NvmlMemory {
  unsigned long long total = 0;
  unsigned long long free = 0;
  unsigned long long used = 0;
};
struct NvmlUtilization {
  unsigned int gpu = 0;  // percent
  unsigned int memory = 0;
};
constexpr int kNvmlSuccess = 0;

}  // namespace

struct GpuMonitor::Library {
  ~Library() {
    if (initialised) shutdown();
    if (handle != nullptr) dlclose(handle);
  }

  template <typename Function>
  bool Find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    return *function != nullptr;
  }

  absl::Status Check(int code, const char* what) const {
    if (code == kNvmlSuccess) return absl::OkStatus();
    return StatusF(absl::StatusCode::kUnavailable, "{}: {}", what, error_string(code));
  }

  void* handle = nullptr;
  bool initialised = false;
  NvmlDevice device = nullptr;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*device_by_bus_id)(const char*, NvmlDevice*) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*utilization)(NvmlDevice, NvmlUtilization*) = nullptr;
  int (*power)(NvmlDevice, unsigned int*) = nullptr;  // milliwatts
};

GpuMonitor::GpuMonitor(std::unique_ptr<Library> library) : library_(std::move(library)) {}
GpuMonitor::~GpuMonitor() = default;

absl::StatusOr<std::unique_ptr<GpuMonitor>> GpuMonitor::Open(int ordinal) {
  std::array<char, 64> bus_id{};
  RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), ordinal), "GPU address"));
  auto library = std::make_unique<Library>();
  library->handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library->handle == nullptr) return StatusF(absl::StatusCode::kUnavailable, "{}", dlerror());
  if (!library->Find("nvmlInit_v2", &library->init) ||
      !library->Find("nvmlShutdown", &library->shutdown) ||
      !library->Find("nvmlErrorString", &library->error_string) ||
      !library->Find("nvmlDeviceGetHandleByPciBusId_v2", &library->device_by_bus_id) ||
      !library->Find("nvmlDeviceGetMemoryInfo", &library->memory) ||
      !library->Find("nvmlDeviceGetUtilizationRates", &library->utilization) ||
      !library->Find("nvmlDeviceGetPowerUsage", &library->power)) {
    return StatusF(absl::StatusCode::kUnavailable, "libnvidia-ml.so.1: {}", dlerror());
  }
  RETURN_IF_ERROR(library->Check(library->init(), "nvmlInit"));
  library->initialised = true;
  RETURN_IF_ERROR(
      library->Check(library->device_by_bus_id(bus_id.data(), &library->device), bus_id.data()));
  std::unique_ptr<GpuMonitor> monitor(new GpuMonitor(std::move(library)));
  RETURN_IF_ERROR(monitor->Read().status());
  return monitor;
}

absl::StatusOr<GpuUsage> GpuMonitor::Read() const {
  NvmlMemory memory;
  RETURN_IF_ERROR(library_->Check(library_->memory(library_->device, &memory), "GPU memory"));
  GpuUsage usage;
  usage.total_bytes = memory.total;
  usage.used_bytes = memory.used;
  // A device shared by virtual machines tells neither of these.
  if (NvmlUtilization busy; library_->utilization(library_->device, &busy) == kNvmlSuccess) {
    usage.busy_ratio = busy.gpu / 100.0;
    usage.memory_busy_ratio = busy.memory / 100.0;
  }
  if (unsigned int milliwatts = 0; library_->power(library_->device, &milliwatts) == kNvmlSuccess) {
    usage.power_watts = milliwatts / 1000.0;
  }
  return usage;
}

}  // namespace banyan::trunk::cuda
