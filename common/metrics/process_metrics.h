// What Prometheus' client libraries report of every process, under their usual names: process_*.
#pragma once

#include <prometheus/collectable.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/metrics/registry.h"

namespace banyan {

struct ProcessUsage {
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  double cpu_seconds = 0;         // user and system
  double start_time_seconds = 0;  // since 1970
  int64_t num_threads = 0;
  int64_t open_fds = 0;
  int64_t max_fds = 0;
  int64_t major_faults = 0;  // page faults that read a disk: mapped weights that were not resident
};

// Of the calling process, from /proc; fields that cannot be read stay 0.
ProcessUsage ReadProcessUsage();

// Reads /proc at every scrape. Thread-safe.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

// banyan_build_info{binary,version,compiler} 1
void RegisterBuildInfo(const std::string& binary, MetricsRegistry* registry);

}  // namespace banyan
