#include "services/client/connection/generation.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "common/rpc/grpc_status.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {

using inference::v1::GenerateResponse;

absl::Status Generation::Add(const GenerateResponse& response, absl::Time now) {
  if (has_finished) {
    return StatusF(absl::StatusCode::kInternal, "the server sent an event after the last one");
  }
  switch (response.event_case()) {
    case GenerateResponse::kStarted:
      started = response.started();
      return absl::OkStatus();
    case GenerateResponse::kChunk: {
      const inference::v1::Chunk& chunk = response.chunk();
      text += chunk.text();
      token_ids.insert(token_ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      logprobs.insert(logprobs.end(), chunk.logprobs().begin(), chunk.logprobs().end());
      if (chunk.token_ids_size() == 0) return absl::OkStatus();  // text held back until now
      if (first_token == absl::InfiniteFuture()) {
        first_token = now;
      } else {
        const absl::Duration gap = (now - last_token) / chunk.token_ids_size();
        token_gaps.insert(token_gaps.end(), static_cast<size_t>(chunk.token_ids_size()), gap);
      }
      last_token = now;
      return absl::OkStatus();
    }
    case GenerateResponse::kFinished:
      finished = response.finished();
      has_finished = true;
      return absl::OkStatus();
    case GenerateResponse::EVENT_NOT_SET:
      break;
  }
  return StatusF(absl::StatusCode::kInternal, "the server sent an event of unknown kind");
}

double Generation::TokensPerSecond() const {
  if (token_gaps.empty()) return 0;
  // Events that waited for us came faster than their tokens were made.
  const double seconds = std::max(absl::ToDoubleSeconds(last_token - first_token),
                                  finished.timings().decode_seconds());
  return seconds > 0 ? static_cast<double>(token_gaps.size()) / seconds : 0;
}

std::string FinishReasonName(inference::v1::FinishReason reason) {
  switch (reason) {
    case inference::v1::STOP:
      return "stop";
    case inference::v1::LENGTH:
      return "length";
    case inference::v1::CANCELLED:
      return "cancelled";
    default:
      return "unspecified";
  }
}

std::string DescribeSpeed(const Generation& generation) {
  const size_t count = generation.token_ids.size();
  if (count == 0) return "no tokens";
  std::string out = fmt::format("{} token{}", count, count == 1 ? "" : "s");
  if (const double rate = generation.TokensPerSecond(); rate > 0) {
    out += fmt::format(", {:.1f} tokens/s", rate);
  }
  out += fmt::format(", first after {:.0f} ms",
                     absl::ToDoubleMilliseconds(generation.TimeToFirstToken()));
  return out;
}

absl::Status RunGenerate(inference::v1::Inference::StubInterface& stub,
                         const inference::v1::GenerateRequest& request, std::string_view address,
                         grpc::ClientContext& context, Generation& generation,
                         const std::function<void(const GenerateResponse&)>& on_event) {
  auto reader = stub.Generate(&context, request);
  GenerateResponse response;
  absl::Status broken;
  while (reader->Read(&response)) {
    broken = generation.Add(response, absl::Now());
    if (!broken.ok()) {
      context.TryCancel();
      break;
    }
    on_event(response);
  }
  const absl::Status status = FromGrpc(reader->Finish());
  if (!broken.ok()) return broken;
  if (!status.ok()) return ExplainCall(status, address);
  if (!generation.has_finished) {
    return StatusF(absl::StatusCode::kInternal, "{} ended the stream without its last event",
                   address);
  }
  return absl::OkStatus();
}

}  // namespace banyan::client
