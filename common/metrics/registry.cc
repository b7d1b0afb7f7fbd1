#include "common/metrics/registry.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <string_view>
#include <utility>

#include "common/base/check.h"

namespace banyan {
namespace {

bool IsName(std::string_view name, bool colon) {
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
  return std::all_of(name.begin(), name.end(), [colon](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           (colon && c == ':');
  });
}

constexpr std::string_view kTotal = "_total";

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::vector<std::string> CheckedNames(const MetricLabels& labels) {
  std::vector<std::string> names;
  for (const auto& [name, value] : labels) {
    CHECK(IsName(name, /*colon=*/false) && name.compare(0, 2, "__") != 0);
    names.push_back(name);
  }
  return names;
}

void CheckBounds(const std::vector<double>& bounds) {
  CHECK(!bounds.empty());
  CHECK(std::adjacent_find(bounds.begin(), bounds.end(), std::greater_equal<double>()) ==
        bounds.end());
}

prometheus::ClientMetric Labelled(const MetricLabels& labels) {
  prometheus::ClientMetric metric;
  for (const auto& [name, value] : labels) metric.label.push_back({name, value});
  return metric;
}

prometheus::ClientMetric::Histogram ToHistogram(const HotHistogram& histogram,
                                                const std::vector<double>& bounds) {
  const HotHistogram::Reading reading = histogram.Read();
  prometheus::ClientMetric::Histogram out;
  for (size_t i = 0; i < reading.counts.size(); ++i) {
    out.sample_count += reading.counts[i];
    out.bucket.push_back({out.sample_count,
                          i < bounds.size() ? bounds[i] : std::numeric_limits<double>::infinity()});
  }
  out.sample_sum = reading.sum;
  return out;
}

}  // namespace

MetricsRegistry::MetricsRegistry() : registry_(std::make_unique<prometheus::Registry>()) {}

void MetricsRegistry::Declare(const std::string& name, Declared declared) {
  CHECK(IsName(name, /*colon=*/true));
  CHECK(!declared.help.empty());
  absl::MutexLock lock(&mutex_);
  const auto [it, inserted] = declared_.try_emplace(name, declared);
  if (inserted) {
    const std::string other = EndsWith(name, kTotal) ? name.substr(0, name.size() - kTotal.size())
                                                     : name + std::string(kTotal);
    CHECK(!declared_.contains(other));
    return;
  }
  CHECK(it->second.type == declared.type);
  CHECK(it->second.help == declared.help);
  CHECK(it->second.bounds == declared.bounds);
  CHECK(it->second.label_names == declared.label_names);
}

prometheus::Counter& MetricsRegistry::Counter(const std::string& name, const std::string& help,
                                              const MetricLabels& labels) {
  Declare(name, {Type::kCounter, help, {}, CheckedNames(labels)});
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(labels);
}

prometheus::Gauge& MetricsRegistry::Gauge(const std::string& name, const std::string& help,
                                          const MetricLabels& labels) {
  Declare(name, {Type::kGauge, help, {}, CheckedNames(labels)});
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(labels);
}

prometheus::Histogram& MetricsRegistry::Histogram(const std::string& name, const std::string& help,
                                                  const std::vector<double>& bounds,
                                                  const MetricLabels& labels) {
  CheckBounds(bounds);
  Declare(name, {Type::kHistogram, help, bounds, CheckedNames(labels)});
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add(labels, bounds);
}

HotCounter& MetricsRegistry::HotCounter(const std::string& name, const std::string& help,
                                        const MetricLabels& labels) {
  Declare(name, {Type::kHotCounter, help, {}, CheckedNames(labels)});
  absl::MutexLock lock(&mutex_);
  banyan::HotCounter*& metric = hot_counter_families_[name][labels];
  if (metric == nullptr) metric = &hot_counters_.emplace_back();
  return *metric;
}

HotHistogram& MetricsRegistry::HotHistogram(const std::string& name, const std::string& help,
                                            const std::vector<double>& bounds,
                                            const MetricLabels& labels) {
  CheckBounds(bounds);
  Declare(name, {Type::kHotHistogram, help, bounds, CheckedNames(labels)});
  absl::MutexLock lock(&mutex_);
  banyan::HotHistogram*& metric = hot_histogram_families_[name][labels];
  if (metric == nullptr) metric = &hot_histograms_.emplace_back(declared_.at(name).bounds);
  return *metric;
}

void MetricsRegistry::BeforeCollect(std::function<void()> update) {
  absl::MutexLock lock(&mutex_);
  updates_.push_back(std::move(update));
}

std::vector<prometheus::MetricFamily> MetricsRegistry::Collect() const {
  {
    absl::MutexLock lock(&mutex_);
    for (const std::function<void()>& update : updates_) update();
  }
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, metrics] : hot_counter_families_) {
    auto& family = families.emplace_back();
    family.name = name;
    family.help = declared_.at(name).help;
    family.type = prometheus::MetricType::Counter;
    for (const auto& [labels, counter] : metrics) {
      family.metric.push_back(Labelled(labels));
      family.metric.back().counter.value = counter->Value();
    }
  }
  for (const auto& [name, metrics] : hot_histogram_families_) {
    const Declared& declared = declared_.at(name);
    auto& family = families.emplace_back();
    family.name = name;
    family.help = declared.help;
    family.type = prometheus::MetricType::Histogram;
    for (const auto& [labels, histogram] : metrics) {
      family.metric.push_back(Labelled(labels));
      family.metric.back().histogram = ToHistogram(*histogram, declared.bounds);
    }
  }
  std::sort(families.begin(), families.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return families;
}

const std::vector<double>& LatencyBuckets() {
  static const auto* const bounds =
      new std::vector<double>{50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3,
                              0.1,   0.2,    0.5,    1,      2,    5,    10,   20,    50,    100};
  return *bounds;
}

}  // namespace banyan
