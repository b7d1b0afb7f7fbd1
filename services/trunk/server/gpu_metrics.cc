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

OpeningGpu::OpeningGpu(int ordinal) : ordinal_(ordinal) {
  absl::StatusOr<std::unique_ptr<cuda::GpuMonitor>> opened = cuda::GpuMonitor::Open(ordinal);
  status_ = opened.status();
  if (!status_.ok()) return;
  monitor_ = *std::move(opened);
  if (const auto usage = monitor_->Read(); usage.ok()) used_bytes_ = usage->used_bytes;
}

OpeningGpu::~OpeningGpu() = default;

void OpeningGpu::Opened(MetricsRegistry* metrics) {
  if (monitor_ == nullptr) {
    LogWarning("no_gpu_metrics", {{"gpu", ordinal_}, {"cause", status_.message()}});
    return;
  }
  if (const auto usage = monitor_->Read(); usage.ok() && usage->used_bytes > used_bytes_) {
    LogInfo("gpu_context", {{"gpu", ordinal_}, {"bytes", usage->used_bytes - used_bytes_}});
  }
  const GpuGauges gauges({{"gpu", std::to_string(ordinal_)}}, *metrics);
  metrics->BeforeCollect([gauges, monitor = monitor_] {
    if (const absl::StatusOr<cuda::GpuUsage> usage = monitor->Read(); usage.ok()) {
      gauges.Set(*usage);
    }
  });
}

}  // namespace banyan::trunk
