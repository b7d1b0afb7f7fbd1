// What Prometheus is told of the trunk's GPU, banyan_trunk_gpu_* (docs/metrics.md), and the log of
// what the driver takes of it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "common/metrics/registry.h"

namespace banyan::trunk {

namespace cuda {
class GpuMonitor;
}

// Made before the backend of CUDA's device `ordinal` is.
class OpeningGpu {
 public:
  explicit OpeningGpu(int ordinal);
  ~OpeningGpu();

  // The backend is there, and has allocated nothing yet: logs by how much the memory in use has
  // grown, which is the context, beside plan and budget. Declares the families and has them read at
  // every scrape. Where the driver does not tell (a container without its `utility` part), says so
  // in the log and declares nothing.
  void Opened(MetricsRegistry* metrics);

 private:
  const int ordinal_;
  absl::Status status_;
  std::shared_ptr<cuda::GpuMonitor> monitor_;
  uint64_t used_bytes_ = 0;
};

}  // namespace banyan::trunk
