#include "services/trunk/sampling/logprobs.h"

#include <cmath>
#include <cstddef>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "services/trunk/sampling/row_math.h"

namespace banyan::trunk {

absl::StatusOr<TokenLogprobs> ComputeLogprobs(std::span<const float> logits,
                                              int32_t sampled_vocab_size, int32_t token_id,
                                              int32_t num_top) {
  CHECK(token_id >= 0 && static_cast<size_t>(token_id) < logits.size());
  CHECK(static_cast<size_t>(sampled_vocab_size) <= logits.size());
  const RowSummary summary = SummarizeRow(logits);
  if (!summary.finite) {
    return StatusF(absl::StatusCode::kInternal,
                   "logits are not finite; log-probability of token id {} is undefined", token_id);
  }
  const double normalizer =
      static_cast<double>(summary.max) + std::log(ExpRow(logits, summary.max, 1.0f, {}));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - normalizer);
  };
  TokenLogprobs result;
  result.token_id = token_id;
  result.logprob = logprob(logits[static_cast<size_t>(token_id)]);
  if (num_top > 0) {
    std::vector<ScoredId> top;
    SelectTop(logits.first(static_cast<size_t>(sampled_vocab_size)), num_top, &top);
    result.top_ids.reserve(top.size());
    result.top_logprobs.reserve(top.size());
    for (const ScoredId& candidate : top) {
      result.top_ids.push_back(candidate.id);
      result.top_logprobs.push_back(logprob(candidate.score));
    }
  }
  return result;
}

}  // namespace banyan::trunk
