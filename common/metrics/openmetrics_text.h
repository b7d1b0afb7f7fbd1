// OpenMetrics 1.0 text, which Prometheus prefers when it may choose.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

namespace banyan {

inline constexpr char kOpenMetricsContentType[] =
    "application/openmetrics-text; version=1.0.0; charset=utf-8";

// Counters, gauges and histograms; another type is our own bug (CHECK), as is a counter whose name
// does not end in _total: its family has the name without.
std::string OpenMetricsText(const std::vector<prometheus::MetricFamily>& families);

}  // namespace banyan
