#include "common/metrics/openmetrics_text.h"

#include <cmath>
#include <string_view>

#include "common/base/check.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr std::string_view kTotal = "_total";

// Bounds of buckets are floats in their canonical form: 1.0, not 1.
std::string Number(double value) {
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  if (std::isnan(value)) return "NaN";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '\\':
        out += "\\\\";
        break;
      case '"':
        out += "\\\"";
        break;
      case '\n':
        out += "\\n";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// `le`: the bound of a bucket, else nullptr.
void AddSample(std::string_view name, const prometheus::ClientMetric& metric, const double* le,
               const std::string& value, std::string* out) {
  *out += name;
  char separator = '{';
  for (const prometheus::ClientMetric::Label& label : metric.label) {
    *out += fmt::format("{}{}=\"{}\"", separator, label.name, Escaped(label.value));
    separator = ',';
  }
  if (le != nullptr) {
    *out += fmt::format("{}le=\"{}\"", separator, Number(*le));
    separator = ',';
  }
  if (separator == ',') *out += '}';
  *out += ' ';
  *out += value;
  *out += '\n';
}

void AddHistogram(const std::string& name, const prometheus::ClientMetric& metric,
                  std::string* out) {
  for (const prometheus::ClientMetric::Bucket& bucket : metric.histogram.bucket) {
    AddSample(name + "_bucket", metric, &bucket.upper_bound,
              std::to_string(bucket.cumulative_count), out);
  }
  AddSample(name + "_count", metric, nullptr, std::to_string(metric.histogram.sample_count), out);
  AddSample(name + "_sum", metric, nullptr, Number(metric.histogram.sample_sum), out);
}

void AddFamily(const prometheus::MetricFamily& family, std::string* out) {
  using prometheus::MetricType;
  std::string name = family.name;
  const char* type = "gauge";
  if (family.type == MetricType::Counter) {
    CHECK(name.size() > kTotal.size() &&
          std::string_view(name).substr(name.size() - kTotal.size()) == kTotal);
    name.resize(name.size() - kTotal.size());
    type = "counter";
  } else if (family.type == MetricType::Histogram) {
    type = "histogram";
  } else {
    CHECK(family.type == MetricType::Gauge);
  }
  *out += fmt::format("# TYPE {} {}\n# HELP {} {}\n", name, type, name, Escaped(family.help));
  for (const prometheus::ClientMetric& metric : family.metric) {
    switch (family.type) {
      case MetricType::Counter:
        AddSample(family.name, metric, nullptr, Number(metric.counter.value), out);
        break;
      case MetricType::Histogram:
        AddHistogram(name, metric, out);
        break;
      default:
        AddSample(name, metric, nullptr, Number(metric.gauge.value), out);
    }
  }
}

}  // namespace

std::string OpenMetricsText(const std::vector<prometheus::MetricFamily>& families) {
  std::string out;
  for (const prometheus::MetricFamily& family : families) AddFamily(family, &out);
  out += "# EOF\n";
  return out;
}

}  // namespace banyan
