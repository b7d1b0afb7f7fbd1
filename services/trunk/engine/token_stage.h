// After the forward pass: logits of the rows that need them, log-probabilities and choices. A
// choice that needs no more than some of the highest logits gets them from the forward pass. All
// logits are for log-probabilities, draws from the whole vocabulary, whatever raises a logit, rows
// of which the highest turn out not to be enough, and those that are not numbers.
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
    int32_t row;           // of the step
    int32_t choice_idx;    // where an error or the chosen token goes
    int32_t prompt_token;  // the token whose log-probability is wanted, -1: choose the next
    int32_t position;      // of that token
    int32_t top_needed;    // of the row's highest logits; 0: all logits
  };

  void CollectWants(std::span<const StepSegment> segments,
                    std::span<Generation* const> generations);
  // How many of the highest logits choose the next token; 0: that takes all.
  int32_t TopNeededBy(const Generation& generation) const;
  // Logits for `wants`, max_logits_rows at the most, and what they are wanted for. Those that need
  // all logits after all are added to again_.
  void Serve(std::span<const Want> wants);
  absl::Status RunHead(std::span<const Want> wants);
  absl::Status Apply(const Want& want, Choice* choice, std::span<float> logits);
  // False: all logits are needed.
  bool ApplyTop(const Want& want, Choice* choice, std::span<const ScoredId> top, bool bounded);

  ForwardPass* const forward_;
  const int32_t sampled_vocab_size_;
  const Clock* const clock_;
  Sampler sampler_;

  std::vector<Choice> choices_;  // one for each segment until Run drops the uneventful
  std::vector<Want> wants_;
  std::vector<Want> again_;
  // Of one RunHead, each in the order of the wants.
  std::vector<int32_t> full_rows_;
  std::vector<float> logits_;  // of full_rows_
  std::vector<int32_t> top_rows_;
  int32_t top_k_ = 0;
  std::vector<ScoredId> top_;  // [top_rows_.size(), top_k_]
  std::vector<uint8_t> bounded_;
  std::vector<float> own_logits_;  // of one row, before the sampler changes it
  absl::Duration logits_time_;
  absl::Duration sampling_time_;
};

}  // namespace banyan::trunk
