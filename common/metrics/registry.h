// Metric families by name, unit and help, on prometheus-cpp. Names follow Prometheus' rules:
// banyan_<part>_<quantity>_<unit>, counters end in _total. Families are declared next to their use.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/hot_metrics.h"

namespace banyan {

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe. Metrics live as long as the registry; asking again for the same name and labels
// returns the same metric. A malformed name, or one used with another type, help, bounds or other
// label names, is our own bug (CHECK), and so is a counter x_total beside a family x: OpenMetrics
// calls both x.
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

  // The same for the expert call, with one writer at a time: hot_metrics.h. Metrics made one after
  // the other lie side by side.
  banyan::HotCounter& HotCounter(const std::string& name, const std::string& help,
                                 const MetricLabels& labels = {});
  banyan::HotHistogram& HotHistogram(const std::string& name, const std::string& help,
                                     const std::vector<double>& bounds,
                                     const MetricLabels& labels = {});

  // Calls `update` at the beginning of every Collect, on its thread: for metrics that are read from
  // elsewhere. It may set metrics and must not ask the registry for any.
  void BeforeCollect(std::function<void()> update) ABSL_LOCKS_EXCLUDED(mutex_);

  // Every family with the values of now, sorted by name.
  std::vector<prometheus::MetricFamily> Collect() const;

 private:
  enum class Type { kCounter, kGauge, kHistogram, kHotCounter, kHotHistogram };
  struct Declared {
    Type type;
    std::string help;
    std::vector<double> bounds;
    std::vector<std::string> label_names;  // sorted
  };
  void Declare(const std::string& name, Declared declared) ABSL_LOCKS_EXCLUDED(mutex_);
  template <typename Metric>
  using HotFamilies = std::map<std::string, std::map<MetricLabels, Metric*>>;

  const std::unique_ptr<prometheus::Registry> registry_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Declared> declared_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::function<void()>> updates_ ABSL_GUARDED_BY(mutex_);
  std::deque<banyan::HotCounter> hot_counters_ ABSL_GUARDED_BY(mutex_);
  std::deque<banyan::HotHistogram> hot_histograms_ ABSL_GUARDED_BY(mutex_);
  HotFamilies<banyan::HotCounter> hot_counter_families_ ABSL_GUARDED_BY(mutex_);
  HotFamilies<banyan::HotHistogram> hot_histogram_families_ ABSL_GUARDED_BY(mutex_);
};

// 50 us .. 100 s, about three bounds a decade: for calls, steps and requests.
const std::vector<double>& LatencyBuckets();

}  // namespace banyan
