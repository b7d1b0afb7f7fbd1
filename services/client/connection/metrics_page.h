// A page of Prometheus text: samples by name and labels, and what two readings of it tell.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace banyan::client {

// Samples that have at least these labels; {} takes all.
using LabelFilter = std::map<std::string, std::string>;

// Cumulative counts of a histogram, as on the page, summed over the samples that a filter takes.
struct HistogramReading {
  std::map<double, double> buckets;  // upper bound (the last one infinite) to count
  double sum = 0;
  double count = 0;
};

// Immutable. Lines that are no samples are passed over.
class MetricsPage {
 public:
  static MetricsPage Parse(std::string_view text);

  // Values by name, summed over all labels.
  std::map<std::string, double> Totals() const;
  // nullopt when no sample fits.
  std::optional<double> Sum(const std::string& name, const LabelFilter& filter = {}) const;
  HistogramReading Histogram(const std::string& name, const LabelFilter& filter = {}) const;
  // Distinct, in order.
  std::vector<std::string> LabelValues(const std::string& name, const std::string& label) const;

 private:
  struct Sample {
    LabelFilter labels;
    double value = 0;
  };
  std::map<std::string, std::vector<Sample>, std::less<>> samples_;
};

// `now` less `before`, or all of `now` when that is less: the process has started anew.
double Increase(double before, double now);

// What was observed between two readings.
HistogramReading Between(const HistogramReading& before, const HistogramReading& now);

// The value below which the share `q` (0..1) of the observations lies, taking them as spread evenly
// within their bucket; the highest finite bound for those above it. nullopt: nothing was observed.
std::optional<double> Quantile(const HistogramReading& histogram, double q);

}  // namespace banyan::client
