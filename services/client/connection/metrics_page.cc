#include "services/client/connection/metrics_page.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>

namespace banyan::client {
namespace {

// Reads `name="value",...}` from behind the '{' and leaves `text` behind the '}'. False: no such.
bool TakeLabels(std::string_view& text, LabelFilter& labels) {
  while (!text.empty() && text.front() != '}') {
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos || equals + 1 >= text.size() || text[equals + 1] != '"') {
      return false;
    }
    const std::string name(text.substr(0, equals));
    std::string value;
    size_t at = equals + 2;
    for (; at < text.size() && text[at] != '"'; ++at) {
      if (text[at] == '\\' && at + 1 < text.size()) {
        ++at;
        value.push_back(text[at] == 'n' ? '\n' : text[at]);
      } else {
        value.push_back(text[at]);
      }
    }
    if (at >= text.size()) return false;
    labels[name] = std::move(value);
    text.remove_prefix(at + 1);
    if (!text.empty() && text.front() == ',') text.remove_prefix(1);
  }
  if (text.empty()) return false;
  text.remove_prefix(1);
  return true;
}

bool Number(std::string_view text, double& value) {
  const std::string copy(text);
  char* end = nullptr;
  value = std::strtod(copy.c_str(), &end);
  return end != copy.c_str();
}

bool Fits(const LabelFilter& labels, const LabelFilter& filter) {
  return std::all_of(filter.begin(), filter.end(), [&](const auto& wanted) {
    const auto found = labels.find(wanted.first);
    return found != labels.end() && found->second == wanted.second;
  });
}

}  // namespace

MetricsPage MetricsPage::Parse(std::string_view text) {
  MetricsPage page;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (line.empty() || line[0] == '#') continue;
    const size_t name_end = line.find_first_of("{ ");
    if (name_end == std::string_view::npos || name_end == 0) continue;
    const std::string_view name = line.substr(0, name_end);
    const bool labelled = line[name_end] == '{';
    line.remove_prefix(name_end + 1);
    Sample sample;
    if (labelled && !TakeLabels(line, sample.labels)) continue;
    if (!Number(line, sample.value)) continue;
    auto found = page.samples_.find(name);
    if (found == page.samples_.end()) {
      found = page.samples_.emplace(std::string(name), std::vector<Sample>()).first;
    }
    found->second.push_back(std::move(sample));
  }
  return page;
}

std::map<std::string, double> MetricsPage::Totals() const {
  std::map<std::string, double> totals;
  for (const auto& [name, samples] : samples_) {
    for (const Sample& sample : samples) totals[name] += sample.value;
  }
  return totals;
}

std::optional<double> MetricsPage::Sum(const std::string& name, const LabelFilter& filter) const {
  std::optional<double> sum;
  const auto found = samples_.find(name);
  if (found == samples_.end()) return sum;
  for (const Sample& sample : found->second) {
    if (Fits(sample.labels, filter)) sum = sum.value_or(0) + sample.value;
  }
  return sum;
}

HistogramReading MetricsPage::Histogram(const std::string& name, const LabelFilter& filter) const {
  HistogramReading histogram;
  histogram.sum = Sum(name + "_sum", filter).value_or(0);
  histogram.count = Sum(name + "_count", filter).value_or(0);
  const auto found = samples_.find(name + "_bucket");
  if (found == samples_.end()) return histogram;
  for (const Sample& sample : found->second) {
    const auto bound = sample.labels.find("le");
    double value = 0;
    if (bound == sample.labels.end() || !Number(bound->second, value)) continue;
    if (Fits(sample.labels, filter)) histogram.buckets[value] += sample.value;
  }
  return histogram;
}

std::vector<std::string> MetricsPage::LabelValues(const std::string& name,
                                                  const std::string& label) const {
  std::set<std::string> values;
  if (const auto found = samples_.find(name); found != samples_.end()) {
    for (const Sample& sample : found->second) {
      const auto value = sample.labels.find(label);
      if (value != sample.labels.end()) values.insert(value->second);
    }
  }
  return {values.begin(), values.end()};
}

double Increase(double before, double now) { return now < before ? now : now - before; }

HistogramReading Between(const HistogramReading& before, const HistogramReading& now) {
  if (now.count < before.count) return now;
  HistogramReading out;
  out.sum = now.sum - before.sum;
  out.count = now.count - before.count;
  for (const auto& [bound, count] : now.buckets) {
    const auto old = before.buckets.find(bound);
    out.buckets[bound] = count - (old == before.buckets.end() ? 0 : old->second);
  }
  return out;
}

std::optional<double> Quantile(const HistogramReading& histogram, double q) {
  if (histogram.buckets.empty()) return std::nullopt;
  const double total = histogram.buckets.rbegin()->second;
  if (!(total > 0)) return std::nullopt;
  const double rank = q * total;
  double lower = 0;
  double below = 0;
  for (const auto& [bound, count] : histogram.buckets) {
    if (count >= rank && count > below) {
      if (std::isinf(bound)) return lower;
      return lower + (bound - lower) * (rank - below) / (count - below);
    }
    if (!std::isinf(bound)) lower = bound;
    below = std::max(below, count);
  }
  return lower;
}

}  // namespace banyan::client
