// Metrics of requests as clients see them; the engine counts steps and tokens.
#pragma once

#include <map>
#include <string_view>

#include "absl/status/status.h"
#include "common/metrics/registry.h"

namespace banyan::trunk {

// Thread-safe.
class RequestMetrics {
 public:
  explicit RequestMetrics(MetricsRegistry* registry);

  // ok, invalid, overload, unavailable, deadline, cancelled or error; slow_client is the caller's.
  static std::string_view Outcome(const absl::Status& status);

  // `outcome`: one of those; another is our own bug (CHECK).
  void Finished(std::string_view outcome, double seconds);

  prometheus::Gauge& active;             // Generate calls between arrival and end
  prometheus::Histogram& prepare;        // rendering and tokenising, queue included
  prometheus::Histogram& first_message;  // arrival to the first message handed to gRPC
  prometheus::Counter& messages;
  prometheus::Counter& coalesced_tokens;  // tokens that shared a message with an earlier one

 private:
  std::map<std::string_view, prometheus::Counter*> outcomes_;
  prometheus::Histogram& duration_;
};

}  // namespace banyan::trunk
