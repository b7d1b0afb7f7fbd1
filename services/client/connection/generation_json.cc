#include "services/client/connection/generation_json.h"

#include <nlohmann/json.hpp>

namespace banyan::client {
namespace {

using nlohmann::ordered_json;

template <typename Records>
ordered_json LogprobsJson(const Records& records) {
  ordered_json list = ordered_json::array();
  for (const inference::v1::TokenLogprobs& record : records) {
    ordered_json entry = {{"token_id", record.token_id()}, {"logprob", record.logprob()}};
    if (record.top_ids_size() > 0) {
      entry["top_ids"] = std::vector<int32_t>(record.top_ids().begin(), record.top_ids().end());
      entry["top_logprobs"] =
          std::vector<float>(record.top_logprobs().begin(), record.top_logprobs().end());
    }
    list.push_back(std::move(entry));
  }
  return list;
}

ordered_json FinishedJson(const inference::v1::Finished& finished) {
  ordered_json json = {{"reason", FinishReasonName(finished.reason())},
                       {"stop_match", finished.stop_match()},
                       {"prompt_tokens", finished.prompt_tokens()},
                       {"completion_tokens", finished.completion_tokens()}};
  json["timings"] = {{"queue_seconds", finished.timings().queue_seconds()},
                     {"prefill_seconds", finished.timings().prefill_seconds()},
                     {"decode_seconds", finished.timings().decode_seconds()}};
  return json;
}

}  // namespace

ordered_json EventJson(const inference::v1::GenerateResponse& event) {
  if (event.has_started()) {
    const auto& started = event.started();
    ordered_json json = {{"request_id", started.request_id()},
                         {"prompt_tokens", started.prompt_tokens()},
                         {"cached_tokens", started.cached_tokens()}};
    if (started.prompt_logprobs_size() > 0) {
      json["prompt_logprobs"] = LogprobsJson(started.prompt_logprobs());
    }
    return {{"started", std::move(json)}};
  }
  if (event.has_chunk()) {
    const auto& chunk = event.chunk();
    ordered_json json = {
        {"text", chunk.text()},
        {"token_ids", std::vector<int32_t>(chunk.token_ids().begin(), chunk.token_ids().end())}};
    if (chunk.logprobs_size() > 0) json["logprobs"] = LogprobsJson(chunk.logprobs());
    return {{"chunk", std::move(json)}};
  }
  return {{"finished", FinishedJson(event.finished())}};
}

ordered_json GenerationJson(const Generation& generation) {
  ordered_json json = {{"request_id", generation.started.request_id()},
                       {"text", generation.text},
                       {"token_ids", generation.token_ids}};
  json.update(FinishedJson(generation.finished));
  json["cached_tokens"] = generation.started.cached_tokens();
  if (!generation.logprobs.empty()) json["logprobs"] = LogprobsJson(generation.logprobs);
  if (generation.started.prompt_logprobs_size() > 0) {
    json["prompt_logprobs"] = LogprobsJson(generation.started.prompt_logprobs());
  }
  if (!generation.token_ids.empty()) {
    json["time_to_first_token_seconds"] = absl::ToDoubleSeconds(generation.TimeToFirstToken());
    json["tokens_per_second"] = generation.TokensPerSecond();
  }
  return json;
}

}  // namespace banyan::client
