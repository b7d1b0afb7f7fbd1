// How busy a GPU is and how much of its memory is taken, as the driver's management library (NVML)
// tells it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace banyan::trunk::cuda {

struct GpuUsage {
  uint64_t total_bytes = 0;
  uint64_t used_bytes = 0;       // by all processes, and what the driver keeps
  double busy_ratio = 0;         // 0..1: time with a kernel running, over the driver's last sample
  double memory_busy_ratio = 0;  // 0..1: time with its memory read or written, likewise
  double power_watts = 0;        // 0 where the device does not tell
};

// Thread-safe.
class GpuMonitor {
 public:
  // `ordinal` as CUDA counts devices. kUnavailable: the library is not installed (containers need
  // the driver capability `utility`) or does not answer.
  static absl::StatusOr<std::unique_ptr<GpuMonitor>> Open(int ordinal);
  ~GpuMonitor();
  GpuMonitor(const GpuMonitor&) = delete;
  GpuMonitor& operator=(const GpuMonitor&) = delete;

  // kUnavailable: the device is lost or the driver went away.
  absl::StatusOr<GpuUsage> Read() const;

 private:
  struct Library;
  explicit GpuMonitor(std::unique_ptr<Library> library);

  const std::unique_ptr<Library> library_;
};

}  // namespace banyan::trunk::cuda
