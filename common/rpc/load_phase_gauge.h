// The phase of a service's load for Prometheus.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "common/metrics/registry.h"
#include "proto/common/v1/load.pb.h"

namespace banyan {

// banyan_<part>_load_phase{phase}: one series for each phase of LoadProgress, of which one is 1;
// and for each how many bytes it has gone through, of how many. Thread-safe.
class LoadPhaseGauge {
 public:
  // `part`: "trunk" or "expert".
  LoadPhaseGauge(const std::string& part, MetricsRegistry* registry);

  void Set(common::v1::LoadProgress::Phase phase);
  void SetBytes(common::v1::LoadProgress::Phase phase, uint64_t done, uint64_t total);

 private:
  struct Gauges {
    prometheus::Gauge* current;
    prometheus::Gauge* bytes;
    prometheus::Gauge* expected_bytes;
  };
  std::map<common::v1::LoadProgress::Phase, Gauges> gauges_;
};

}  // namespace banyan
