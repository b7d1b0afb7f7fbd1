// After the forward pass: logits of the rows that need them, log-probabilities and choices.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "services/trunk/engine/forward_pass.h"
#include "services/trunk/engine/generation.h"
#include "services/trunk/sampling/sampler.h"

namespace banyan::trunk {

// What a step yields for one sequence that has every known token in its state, or that failed.
struct Choice {
  Generation* generation = nullptr;
  absl::Status status;    // kInternal: logits could not be computed or are not finite
  int32_t token_id = -1;  // -1: the request wants nothing generated
  std::optional<TokenLogprobs> logprobs;  // if the request asks for them
};

// Owned by the engine's thread. At most limits().max_logits_rows rows of logits exist at a time,
// however long the prompts whose log-probabilities are asked for.
class TokenStage {
 public:
  // `forward` and `clock` are borrowed.
  TokenStage(ForwardPass* forward, int32_t sampled_vocab_size, const Clock* clock);

  // `segments` of the step that has just run, `generations` theirs. Appends prompt
  // log-probabilities to the generations; returns a choice, in the order of the segments, for each
  // one that awaits a token or failed. The span lives until the next call.
  std::span<Choice> Run(std::span<const StepSegment> segments,
                        std::span<Generation* const> generations);

  // Of the last Run.
  absl::Duration logits_time() const { return logits_time_; }
  absl::Duration sampling_time() const { return sampling_time_; }

 private:
  struct Want {
    int32_t choice_idx;    // where an error or the chosen token goes
    int32_t prompt_token;  // the token whose log-probability is wanted, -1: choose the next
    int32_t position;      // of that token
  };

  void CollectWants(std::span<const StepSegment> segments,
                    std::span<Generation* const> generations);
  absl::Status Apply(const Want& want, Choice* choice, std::span<float> logits);

  ForwardPass* const forward_;
  const int32_t sampled_vocab_size_;
  const Clock* const clock_;
  Sampler sampler_;

  std::vector<Choice> choices_;  // one for each segment until Run drops the uneventful
  std::vector<int32_t> rows_;    // wanted, and in `wants_` what for
  std::vector<Want> wants_;
  std::vector<float> logits_;
  std::vector<float> own_logits_;  // of one row, before the sampler changes it
  absl::Duration logits_time_;
  absl::Duration sampling_time_;
};

}  // namespace banyan::trunk
