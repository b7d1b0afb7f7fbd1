#include "services/trunk/server/gpu_metrics.h"

#include <memory>
#include <string>
#include <utility>

#include "common/base/logging.h"
#include "services/trunk/ops/cuda/gpu_usage.h"

namespace banyan::trunk {
namespace {

struct GpuGauges {
  GpuGauges(const MetricLabels& labels, MetricsRegistry& metrics)
      : memory_bytes(metrics.Gauge("banyan_trunk_gpu_memory_bytes", "Memory of the GPU", labels)),
        memory_used_bytes(metrics.Gauge("banyan_trunk_gpu_memory_used_bytes",
                                        "Memory of the GPU in use, by all processes", labels)),
        busy_ratio(metrics.Gauge(
            "banyan_trunk_gpu_busy_ratio",
            "Share of the time in which a kernel ran, over the driver's last sample", labels)),
        memory_busy_ratio(metrics.Gauge(
            "banyan_trunk_gpu_memory_busy_ratio",
            "Share of the time in which its memory was read or written, likewise", labels)),
        power_watts(metrics.Gauge("banyan_trunk_gpu_power_watts", "What the GPU draws", labels)) {}

  void Set(const cuda::GpuUsage& usage) const {
    memory_bytes.Set(static_cast<double>(usage.total_bytes));
    memory_used_bytes.Set(static_cast<double>(usage.used_bytes));
    busy_ratio.Set(usage.busy_ratio);
    memory_busy_ratio.Set(usage.memory_busy_ratio);
    power_watts.Set(usage.power_watts);
  }

  prometheus::Gauge& memory_bytes;
  prometheus::Gauge& memory_used_bytes;
  prometheus::Gauge& busy_ratio;
  prometheus::Gauge& memory_busy_ratio;
  prometheus::Gauge& power_watts;
};

}  // namespace

void RegisterGpuMetrics(int ordinal, MetricsRegistry* registry) {
  absl::StatusOr<std::unique_ptr<cuda::GpuMonitor>> opened = cuda::GpuMonitor::Open(ordinal);
  if (!opened.ok()) {
    LogWarning("no_gpu_metrics", {{"gpu", ordinal}, {"cause", opened.status().message()}});
    return;
  }
  const GpuGauges gauges({{"gpu", std::to_string(ordinal)}}, *registry);
  registry->BeforeCollect(
      [gauges, monitor = std::shared_ptr<cuda::GpuMonitor>(*std::move(opened))] {
        if (const absl::StatusOr<cuda::GpuUsage> usage = monitor->Read(); usage.ok()) {
          gauges.Set(*usage);
        }
      });
}

}  // namespace banyan::trunk
