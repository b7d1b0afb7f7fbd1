// Metrics of requests as clients see them; the engine counts steps and tokens.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "common/metrics/registry.h"

namespace banyan::trunk {

// Thread-safe.
class RequestMetrics {
 public:
  explicit RequestMetrics(MetricsRegistry* registry);

  // ok, invalid, overload, unavailable, deadline, cancelled, slow_client, error.
  static std::string_view Outcome(const absl::Status& status);

  void Finished(std::string_view outcome, double seconds);

  prometheus::Gauge& active;             // Generate calls between arrival and end
  prometheus::Histogram& prepare;        // rendering and tokenising, queue included
  prometheus::Histogram& first_message;  // arrival to the first message handed to gRPC
  prometheus::Counter& messages;
  prometheus::Counter& coalesced_tokens;  // tokens that shared a message with an earlier one

 private:
  MetricsRegistry* registry_;
};

}  // namespace banyan::trunk
