// What a load run amounted to: throughput, latencies, errors; as a table and as JSON.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "services/client/load/load_run.h"

namespace banyan::client {

// The value below or at which `percent` of the values lie (nearest rank); 0 for none. Sorts.
double Percentile(std::vector<double>& values, double percent);

struct Latencies {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;  // seconds
};

struct LoadReport {
  int64_t num_requests = 0;
  int64_t num_succeeded = 0;
  std::map<std::string, int64_t> errors;           // by status code
  std::map<std::string, std::string> error_texts;  // the first one of each code
  double elapsed_seconds = 0;  // from the first request sent to the last one ended
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  Latencies ttft;        // of successful requests
  Latencies itl;         // every gap between tokens
  Latencies end_to_end;  // of successful requests

  double OutputTokensPerSecond() const;
  double PromptTokensPerSecond() const;
  double RequestsPerSecond() const;

  std::string ToText() const;
  nlohmann::ordered_json ToJson() const;
};

LoadReport MakeReport(const std::vector<LoadOutcome>& outcomes);

}  // namespace banyan::client
