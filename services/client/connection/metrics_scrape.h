// Reads the Prometheus text page of a service.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/client/connection/metrics_page.h"

namespace banyan::client {

// GET http://ADDRESS/metrics. kUnavailable when it cannot be read in time.
absl::StatusOr<MetricsPage> ScrapeMetrics(const std::string& address, absl::Duration patience);

}  // namespace banyan::client
