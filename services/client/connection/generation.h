// One answer as it arrives from Inference.Generate, with the client's own clock.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/inference/v1/inference.grpc.pb.h"

namespace banyan::client {

// Thread-compatible.
struct Generation {
  absl::Time sent;
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
  std::vector<absl::Duration> token_gaps;  // between chunks, spread over the tokens of each chunk
  inference::v1::Started started;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<inference::v1::TokenLogprobs> logprobs;
  inference::v1::Finished finished;
  bool has_finished = false;

  explicit Generation(absl::Time sent_at) : sent(sent_at) {}

  // Takes one event of the stream in; kInternal when the events break the contract (a chunk after
  // the last, no event at all).
  absl::Status Add(const inference::v1::GenerateResponse& response, absl::Time now);

  absl::Duration TimeToFirstToken() const { return first_token - sent; }
  // Tokens after the first per second since the first, as they came or, where that took longer, as
  // the server made them; 0 when there are fewer than two.
  double TokensPerSecond() const;
};

std::string FinishReasonName(inference::v1::FinishReason reason);  // stop, length, cancelled

// "24 tokens, 118.2 tokens/s, first after 31 ms"
std::string DescribeSpeed(const Generation& generation);

// Runs a request to its end on this thread; `on_event` sees every event as it comes.
// `generation` is filled as far as the stream came, whatever the outcome. Errors are the server's
// (ExplainCall), kCancelled when `context` was cancelled.
absl::Status RunGenerate(
    inference::v1::Inference::StubInterface& stub, const inference::v1::GenerateRequest& request,
    std::string_view address, grpc::ClientContext& context, Generation& generation,
    const std::function<void(const inference::v1::GenerateResponse&)>& on_event);

}  // namespace banyan::client
