// The phase of a service's load for Prometheus.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "common/metrics/registry.h"
#include "proto/common/v1/load.pb.h"

namespace banyan {

// banyan_<part>_load_phase{phase}: one series for each phase of LoadProgress, of which one is 1;
// banyan_<part>_load_done_bytes and banyan_<part>_load_total_bytes: of that phase. Thread-safe.
class LoadPhaseGauge {
 public:
  // `part`: "trunk" or "expert".
  LoadPhaseGauge(const std::string& part, MetricsRegistry* registry);

  void Set(common::v1::LoadProgress::Phase phase);
  void SetBytes(uint64_t done, uint64_t total);

 private:
  std::map<common::v1::LoadProgress::Phase, prometheus::Gauge*> gauges_;
  prometheus::Gauge& done_bytes_;
  prometheus::Gauge& total_bytes_;
};

}  // namespace banyan
