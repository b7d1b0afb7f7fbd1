// What Prometheus is told of the trunk's GPU: banyan_trunk_gpu_* (docs/metrics.md).
#pragma once

#include "common/metrics/registry.h"

namespace banyan::trunk {

// Declares the families for CUDA's device `ordinal` and has them read at every scrape. Where the
// driver does not tell (a container without its `utility` part), says so in the log and declares
// nothing.
void RegisterGpuMetrics(int ordinal, MetricsRegistry* registry);

}  // namespace banyan::trunk
