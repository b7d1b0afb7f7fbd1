#include "services/trunk/server/request_validation.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

using inference::v1::GenerateRequest;

absl::Status CheckStops(const GenerateRequest& given, const ModelFacts& facts) {
  if (given.stop_size() > kMaxStopStrings) {
    return InvalidArgumentF("stop: {} strings, expected at most {}", given.stop_size(),
                            kMaxStopStrings);
  }
  for (int i = 0; i < given.stop_size(); ++i) {
    const size_t bytes = given.stop(i).size();
    if (bytes == 0) return InvalidArgumentF("stop[{}]: empty, expected 1 byte or more", i);
    if (bytes > kMaxStopStringBytes) {
      return InvalidArgumentF("stop[{}]: {} bytes, expected at most {}", i, bytes,
                              kMaxStopStringBytes);
    }
  }
  if (given.stop_size() > 0 && facts.codec == nullptr) {
    return FailedPreconditionF(
        "stop: this checkpoint has no tokenizer files, so there is no text to search; use "
        "stop_token_ids");
  }
  if (given.stop_token_ids_size() > kMaxStopTokenIds) {
    return InvalidArgumentF("stop_token_ids: {} ids, expected at most {}",
                            given.stop_token_ids_size(), kMaxStopTokenIds);
  }
  for (int i = 0; i < given.stop_token_ids_size(); ++i) {
    const int32_t id = given.stop_token_ids(i);
    if (id < 0 || id >= facts.vocab_size) {
      return InvalidArgumentF("stop_token_ids[{}] {}: expected ids from 0 to {}", i, id,
                              facts.vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequestId(const std::string& request_id) {
  if (request_id.empty() || request_id.size() > kMaxRequestIdBytes) {
    return InvalidArgumentF("request_id: {} bytes, expected 1 to {}", request_id.size(),
                            kMaxRequestIdBytes);
  }
  if (!IsRequestId(request_id)) {
    return InvalidArgumentF("request_id \"{}\": expected printable ASCII without spaces",
                            Printable(request_id));
  }
  return absl::OkStatus();
}

std::string NewRequestId() { return fmt::format("r-{:016x}", RandomSeed()); }

absl::StatusOr<SamplingParams> ResolveSampling(const inference::v1::SamplingParams& given,
                                               const ModelFacts& facts) {
  const GenerationConfig& defaults = facts.defaults;
  SamplingParams out;
  out.temperature =
      given.has_temperature() ? given.temperature() : defaults.temperature.value_or(1.0f);
  out.top_k = given.has_top_k() ? given.top_k() : defaults.top_k.value_or(0);
  out.top_p = given.has_top_p() ? given.top_p() : defaults.top_p.value_or(1.0f);
  out.min_p = given.has_min_p() ? given.min_p() : defaults.min_p.value_or(0.0f);
  out.repetition_penalty = given.has_repetition_penalty()
                               ? given.repetition_penalty()
                               : defaults.repetition_penalty.value_or(1.0f);
  out.presence_penalty = given.presence_penalty();
  out.frequency_penalty = given.frequency_penalty();
  if (given.logit_bias().size() > static_cast<size_t>(kMaxLogitBiases)) {
    return InvalidArgumentF("sampling.logit_bias: {} ids, expected at most {}",
                            given.logit_bias().size(), kMaxLogitBiases);
  }
  out.logit_bias.assign(given.logit_bias().begin(), given.logit_bias().end());
  // A map has no order of its own; messages and results must not depend on one.
  std::sort(out.logit_bias.begin(), out.logit_bias.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  if (absl::Status status = ValidateSamplingParams(out, facts.vocab_size); !status.ok()) {
    return absl::Status(status.code(), fmt::format("sampling.{}", ToStd(status.message())));
  }
  out.seed = given.has_seed() ? given.seed() : RandomSeed();
  return out;
}

inference::v1::SamplingParams DefaultSampling(const ModelFacts& facts) {
  const GenerationConfig& defaults = facts.defaults;
  inference::v1::SamplingParams out;
  out.set_max_new_tokens(defaults.max_new_tokens.value_or(facts.max_context_tokens));
  out.set_temperature(defaults.temperature.value_or(1.0f));
  out.set_top_k(defaults.top_k.value_or(0));
  out.set_top_p(defaults.top_p.value_or(1.0f));
  out.set_min_p(defaults.min_p.value_or(0.0f));
  out.set_repetition_penalty(defaults.repetition_penalty.value_or(1.0f));
  out.set_presence_penalty(0);
  out.set_frequency_penalty(0);
  return out;
}

absl::StatusOr<Request> ResolveRequest(const GenerateRequest& given, const ModelFacts& facts) {
  if (given.prompt_case() == GenerateRequest::PROMPT_NOT_SET) {
    return InvalidArgumentF("prompt: none, expected text, token_ids or chat");
  }
  if (given.num_logprobs() < 0 || given.num_logprobs() > kMaxLogprobs) {
    return InvalidArgumentF("num_logprobs {}: expected 0 to {}", given.num_logprobs(),
                            kMaxLogprobs);
  }
  RETURN_IF_ERROR(CheckStops(given, facts));
  const inference::v1::SamplingParams& sampling = given.sampling();
  if (sampling.has_max_new_tokens() && sampling.max_new_tokens() < 0) {
    return InvalidArgumentF("sampling.max_new_tokens {}: expected 0 (prompt only) or more",
                            sampling.max_new_tokens());
  }

  Request out;
  out.request_id = given.request_id();
  ASSIGN_OR_RETURN(out.sampling, ResolveSampling(sampling, facts));
  out.max_new_tokens =
      sampling.has_max_new_tokens()
          ? sampling.max_new_tokens()
          : facts.defaults.max_new_tokens.value_or(std::numeric_limits<int32_t>::max());
  if (!given.ignore_eos()) out.stop_token_ids = facts.eos_token_ids;
  for (const int32_t id : given.stop_token_ids()) {
    if (std::find(out.stop_token_ids.begin(), out.stop_token_ids.end(), id) ==
        out.stop_token_ids.end()) {
      out.stop_token_ids.push_back(id);
    }
  }
  out.num_logprobs = given.num_logprobs();
  out.logprobs = given.num_logprobs() > 0;
  out.prompt_logprobs = given.prompt_logprobs();
  return out;
}

void SetPrompt(std::vector<int32_t> prompt_ids, const ModelFacts& facts, Request& request) {
  CHECK(prompt_ids.size() <= static_cast<size_t>(facts.max_context_tokens));
  const int32_t rest = facts.max_context_tokens - static_cast<int32_t>(prompt_ids.size());
  request.prompt_ids = std::move(prompt_ids);
  request.max_new_tokens = std::min(request.max_new_tokens, rest);
}

}  // namespace banyan::trunk
