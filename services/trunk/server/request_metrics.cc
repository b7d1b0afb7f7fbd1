#include "services/trunk/server/request_metrics.h"

#include <string>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {

prometheus::Counter& Requests(MetricsRegistry* registry, std::string_view outcome) {
  return registry->Counter("banyan_trunk_calls_total",
                           "Generate calls that have ended, by outcome.",
                           {{"outcome", std::string(outcome)}});
}

prometheus::Histogram& Duration(MetricsRegistry* registry) {
  return registry->Histogram("banyan_trunk_call_seconds",
                             "Generate calls that were answered, from arrival to end.",
                             LatencyBuckets());
}

}  // namespace

RequestMetrics::RequestMetrics(MetricsRegistry* registry)
    : active(registry->Gauge("banyan_trunk_calls_active", "Generate calls under way")),
      prepare(registry->Histogram("banyan_trunk_prompt_prepare_seconds",
                                  "Rendering and tokenising a prompt, waiting included",
                                  LatencyBuckets())),
      first_message(registry->Histogram("banyan_trunk_first_message_seconds",
                                        "Arrival of a Generate call to its first message",
                                        LatencyBuckets())),
      messages(registry->Counter("banyan_trunk_messages_total", "Messages of Generate streams")),
      coalesced_tokens(registry->Counter(
          "banyan_trunk_coalesced_tokens_total",
          "Tokens sent together with an earlier one because the client had not read that yet")),
      duration_(Duration(registry)) {
  for (const char* outcome : {"ok", "invalid", "overload", "unavailable", "deadline", "cancelled",
                              "slow_client", "error"}) {
    outcomes_[outcome] = &Requests(registry, outcome);
  }
}

std::string_view RequestMetrics::Outcome(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return "ok";
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
      return "invalid";
    case absl::StatusCode::kResourceExhausted:
      return "overload";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    default:
      return "error";
  }
}

void RequestMetrics::Finished(std::string_view outcome, double seconds) {
  const auto found = outcomes_.find(outcome);
  CHECK(found != outcomes_.end());
  found->second->Increment();
  if (outcome == "ok") duration_.Observe(seconds);
}

}  // namespace banyan::trunk
