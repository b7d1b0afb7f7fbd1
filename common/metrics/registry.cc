#include "common/metrics/registry.h"

#include <exception>

#include "common/base/check.h"
#include "common/base/logging.h"

namespace banyan {
namespace {

// Merge: a family asked for again is the same family; one of another type throws.
template <typename Builder, typename... Extra>
auto& Get(prometheus::Registry& registry, Builder builder, const std::string& name,
          const std::string& help, const MetricLabels& labels, const Extra&... extra) {
  try {
    return builder.Name(name).Help(help).Register(registry).Add(labels, extra...);
  } catch (const std::exception& error) {
    LogError("metric_name name={} error=\"{}\"", name, error.what());
    CHECK(!"a metric's name, labels or type");
  }
}

}  // namespace

MetricsRegistry::MetricsRegistry()
    : registry_(
          std::make_shared<prometheus::Registry>(prometheus::Registry::InsertBehavior::Merge)) {}

prometheus::Counter& MetricsRegistry::Counter(const std::string& name, const std::string& help,
                                              const MetricLabels& labels) {
  return Get(*registry_, prometheus::BuildCounter(), name, help, labels);
}

prometheus::Gauge& MetricsRegistry::Gauge(const std::string& name, const std::string& help,
                                          const MetricLabels& labels) {
  return Get(*registry_, prometheus::BuildGauge(), name, help, labels);
}

prometheus::Histogram& MetricsRegistry::Histogram(const std::string& name, const std::string& help,
                                                  const std::vector<double>& bounds,
                                                  const MetricLabels& labels) {
  return Get(*registry_, prometheus::BuildHistogram(), name, help, labels, bounds);
}

const std::vector<double>& LatencyBuckets() {
  static const std::vector<double> bounds = {50e-6, 100e-6, 200e-6, 500e-6, 1e-3,   2e-3,   5e-3,
                                             10e-3, 20e-3,  50e-3,  100e-3, 200e-3, 500e-3, 1,
                                             2,     5,      10,     20,     50,     100};
  return bounds;
}

}  // namespace banyan
