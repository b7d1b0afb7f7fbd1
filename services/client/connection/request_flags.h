// The command-line flags that chat, generate and bench share: where the server is, how to sample.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace CLI {
class App;
}
namespace grpc {
class ClientContext;
}
namespace banyan::inference::v1 {
class GenerateRequest;
}

namespace banyan::client {

struct ServerFlags {
  std::string address;
  double timeout_seconds = 0;  // of one call; 0: none

  absl::Time Deadline() const;
};
// Names a request in the logs of trunk and experts.
struct TraceFlags {
  std::string traceparent;

  // kInvalidArgument for a --traceparent that the server would ignore.
  absl::Status Check() const;
  // Adds the metadata.
  void Fill(grpc::ClientContext& context) const;
};
void AddTraceFlags(CLI::App& verb, TraceFlags& flags);

void AddServerFlags(CLI::App& verb, ServerFlags& flags, double default_timeout_seconds);

// Unset values are left to the server, which takes them from generation_config.json and checks
// the set ones.
struct SamplingFlags {
  std::optional<int32_t> max_new_tokens;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::string> logit_bias;  // ID=VALUE
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;

  // kInvalidArgument for a --logit_bias that is not ID=VALUE.
  absl::Status Fill(inference::v1::GenerateRequest& request) const;
};
void AddSamplingFlags(CLI::App& verb, SamplingFlags& flags);

}  // namespace banyan::client
