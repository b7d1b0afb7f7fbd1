#include "services/trunk/engine/engine.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/strings.h"
#include "services/trunk/engine/step_engine.h"

namespace banyan::trunk {

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const Options& options, ForwardPass* forward,
                                                       ExpertTransport* experts,
                                                       MetricsRegistry* metrics,
                                                       const Clock* clock) {
  CHECK(forward != nullptr && experts != nullptr && metrics != nullptr && clock != nullptr);
  const ForwardPass::Limits& limits = forward->limits();
  if (options.max_sequences < 1 || options.max_sequences > limits.num_slots) {
    return InvalidArgumentF("max_sequences {}: expected 1 to {}, the recurrent-state slots",
                            options.max_sequences, limits.num_slots);
  }
  const int64_t least_rows = int64_t{options.max_sequences} + kDeltaNetChunkTokens - 1;
  if (options.max_batch_tokens < least_rows || options.max_batch_tokens > limits.max_rows) {
    return InvalidArgumentF(
        "max_batch_tokens {}: expected {} (max_sequences {} + {}, room for a piece of a prompt) to "
        "{}, the rows of a forward pass",
        options.max_batch_tokens, least_rows, options.max_sequences, kDeltaNetChunkTokens - 1,
        limits.max_rows);
  }
  if (options.max_mixed_tokens != 0 && (options.max_mixed_tokens < least_rows ||
                                        options.max_mixed_tokens > options.max_batch_tokens)) {
    return InvalidArgumentF("max_mixed_tokens {}: expected 0, or {} to {}, the rows of a step",
                            options.max_mixed_tokens, least_rows, options.max_batch_tokens);
  }
  if (options.max_queued_requests < 1) {
    return InvalidArgumentF("max_queued_requests {}: expected 1 or more",
                            options.max_queued_requests);
  }
  if (options.max_context_tokens < 0 || options.max_context_tokens > limits.max_position) {
    return InvalidArgumentF("max_context_tokens {}: expected 0 to {}, the model's limit",
                            options.max_context_tokens, limits.max_position);
  }
  if (options.sampled_vocab_size < 0 || options.sampled_vocab_size > limits.vocab_size) {
    return InvalidArgumentF("sampled_vocab_size {}: expected 0 to {}, the model's vocabulary",
                            options.sampled_vocab_size, limits.vocab_size);
  }
  if (options.expert_wait < absl::ZeroDuration()) {
    return InvalidArgumentF("expert_wait {}s: expected 0 or more",
                            absl::ToDoubleSeconds(options.expert_wait));
  }
  if (limits.num_pages < 1 || limits.max_logits_rows < 1 || limits.vocab_size < 1) {
    return InvalidArgumentF(
        "the forward pass has {} KV pages, {} rows of logits, {} ids: expected at least 1 of each",
        limits.num_pages, limits.max_logits_rows, limits.vocab_size);
  }

  Options complete = options;
  if (complete.sampled_vocab_size == 0) complete.sampled_vocab_size = limits.vocab_size;
  if (complete.max_context_tokens == 0) complete.max_context_tokens = limits.max_position;
  // A sequence alone must fit, or the oldest could wait for pages for ever.
  const int64_t page_tokens = int64_t{limits.num_pages} * kPageTokens;
  if (complete.max_context_tokens > page_tokens) {
    LogWarning("context_limited_by_pages", {{"max_context_tokens", complete.max_context_tokens},
                                            {"kv_pages", limits.num_pages},
                                            {"kv_tokens", page_tokens}});
    complete.max_context_tokens = static_cast<int32_t>(page_tokens);
  }
  return std::make_unique<StepEngine>(complete, forward, experts, metrics, clock);
}

}  // namespace banyan::trunk
