#include "services/client/connection/request_flags.h"

#include <grpcpp/client_context.h>

#include <CLI/CLI.hpp>
#include <charconv>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/trace_context.h"
#include "proto/inference/v1/inference.pb.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {
namespace {

template <typename T>
bool ParseWhole(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace

absl::Time ServerFlags::Deadline() const {
  return timeout_seconds > 0 ? absl::Now() + absl::Seconds(timeout_seconds)
                             : absl::InfiniteFuture();
}

void AddServerFlags(CLI::App& verb, ServerFlags& flags, double default_timeout_seconds) {
  flags.address = kDefaultServer;
  flags.timeout_seconds = default_timeout_seconds;
  verb.add_option("--server", flags.address, "The trunk: host:port or unix:/path")
      ->capture_default_str();
  verb.add_option("--timeout", flags.timeout_seconds, "Seconds one call may take; 0: no limit")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
}

absl::Status TraceFlags::Check() const {
  if (traceparent.empty()) return absl::OkStatus();
  return Annotate(ParseTraceparent(traceparent).status(), "--traceparent");
}

void TraceFlags::Fill(grpc::ClientContext& context) const {
  if (!traceparent.empty()) context.AddMetadata("traceparent", traceparent);
}

void AddTraceFlags(CLI::App& verb, TraceFlags& flags) {
  verb.add_option("--traceparent", flags.traceparent,
                  "W3C trace context of the caller; its trace id appears in the servers' logs");
}

void AddSamplingFlags(CLI::App& verb, SamplingFlags& flags) {
  const std::string group = "Sampling (default: the checkpoint's generation_config.json)";
  const auto add = [&](const char* name, auto& value, const char* help) {
    return verb.add_option(name, value, help)->group(group);
  };
  add("--max_new_tokens", flags.max_new_tokens, "Longest answer, in tokens");
  add("--temperature", flags.temperature, "0 always takes the likeliest token");
  add("--top_k", flags.top_k, "Choose among the K likeliest tokens; 0: all");
  add("--top_p", flags.top_p, "Choose among the likeliest tokens that make up this probability");
  add("--min_p", flags.min_p, "Drop tokens below this share of the likeliest one's probability");
  add("--repetition_penalty", flags.repetition_penalty, "Divides logits of tokens seen before");
  add("--presence_penalty", flags.presence_penalty, "Subtracted once a token was generated");
  add("--frequency_penalty", flags.frequency_penalty, "Subtracted for each time it was generated");
  add("--seed", flags.seed, "Same request and seed: same answer");
  add("--logit_bias", flags.logit_bias, "ID=VALUE, added to that token's logit; repeatable")
      ->allow_extra_args(false);
  add("--stop", flags.stop, "End before this text; repeatable")->allow_extra_args(false);
  add("--stop_token_id", flags.stop_token_ids, "End at this token; repeatable")
      ->allow_extra_args(false);
  verb.add_flag("--ignore_eos", flags.ignore_eos, "Go on after end tokens")->group(group);
}

absl::Status SamplingFlags::Fill(inference::v1::GenerateRequest& request) const {
  inference::v1::SamplingParams& sampling = *request.mutable_sampling();
  if (max_new_tokens) sampling.set_max_new_tokens(*max_new_tokens);
  if (temperature) sampling.set_temperature(*temperature);
  if (top_k) sampling.set_top_k(*top_k);
  if (top_p) sampling.set_top_p(*top_p);
  if (min_p) sampling.set_min_p(*min_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (presence_penalty) sampling.set_presence_penalty(*presence_penalty);
  if (frequency_penalty) sampling.set_frequency_penalty(*frequency_penalty);
  if (seed) sampling.set_seed(*seed);
  for (const std::string& entry : logit_bias) {
    const size_t equals = entry.find('=');
    int32_t id = 0;
    float value = 0;
    if (equals == std::string::npos || !ParseWhole(std::string_view(entry).substr(0, equals), id) ||
        !ParseWhole(std::string_view(entry).substr(equals + 1), value)) {
      return InvalidArgumentF("--logit_bias '{}': expected ID=VALUE, such as 42=-1.5",
                              Printable(entry));
    }
    (*sampling.mutable_logit_bias())[id] = value;
  }
  for (const std::string& text : stop) request.add_stop(text);
  for (int32_t id : stop_token_ids) request.add_stop_token_ids(id);
  request.set_ignore_eos(ignore_eos);
  return absl::OkStatus();
}

}  // namespace banyan::client
