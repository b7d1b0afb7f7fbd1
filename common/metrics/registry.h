// Metric families by name, unit and help, on prometheus-cpp. Names follow Prometheus' rules:
// banyan_<part>_<quantity>_<unit>, counters end in _total. Families are declared next to their use.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace banyan {

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe. Metrics live as long as the registry; asking again for the same name and labels
// returns the same metric. A name used with another type or help is our own bug (CHECK).
class MetricsRegistry {
 public:
  MetricsRegistry();

  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {});
  // `bounds`: ascending upper bounds; +Inf is added.
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const std::vector<double>& bounds,
                                   const MetricLabels& labels = {});

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  std::shared_ptr<prometheus::Registry> registry_;
};

// 50 us .. 100 s, about three bounds a decade: for calls, steps and requests.
const std::vector<double>& LatencyBuckets();

}  // namespace banyan
