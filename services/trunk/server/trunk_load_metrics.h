// What the trunk's load tells Prometheus.
#pragma once

#include "common/metrics/registry.h"

namespace banyan::trunk {

// Made before the load, so that its progress can be scraped. Thread-safe.
struct TrunkLoadMetrics {
  explicit TrunkLoadMetrics(MetricsRegistry& metrics);

  prometheus::Gauge& model_bytes;
  prometheus::Gauge& planned_bytes;
  prometheus::Gauge& loaded_bytes;
  prometheus::Gauge& seconds;
  prometheus::Gauge& bandwidth;
  prometheus::Gauge& prompt_experts;
  prometheus::Counter& packs_rejected;
};

}  // namespace banyan::trunk
