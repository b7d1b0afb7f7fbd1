// Reads a Prometheus text page: enough to turn two readings into rates.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace banyan::client {

// Values by family name, summed over all labels. Lines that are no samples are passed over.
std::map<std::string, double> ParseMetrics(std::string_view text);

// GET http://ADDRESS/metrics. kUnavailable when it cannot be read in time.
absl::StatusOr<std::map<std::string, double>> ScrapeMetrics(const std::string& address,
                                                            absl::Duration patience);

}  // namespace banyan::client
