// The phase of a service's load for Prometheus.
#pragma once

#include <map>
#include <string>

#include "common/metrics/registry.h"
#include "proto/common/v1/load.pb.h"

namespace banyan {

// banyan_<part>_load_phase{phase}: one series for each phase of LoadProgress, of which one is 1.
// Thread-safe.
class LoadPhaseGauge {
 public:
  // `part`: "trunk" or "expert".
  LoadPhaseGauge(const std::string& part, MetricsRegistry* registry);

  void Set(common::v1::LoadProgress::Phase phase);

 private:
  std::map<common::v1::LoadProgress::Phase, prometheus::Gauge*> gauges_;
};

}  // namespace banyan
