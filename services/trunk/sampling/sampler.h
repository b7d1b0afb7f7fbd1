// Chooses the next token of a sequence: a pure function of logits, parameters, history, seed and
// position.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "services/trunk/sampling/row_math.h"
#include "services/trunk/sampling/sampling_params.h"
#include "services/trunk/sampling/token_history.h"

namespace banyan::trunk {

// Holds scratch for one row (8 bytes per id); one per thread.
class Sampler {
 public:
  // Ids from `sampled_vocab_size` on are never chosen.
  explicit Sampler(int32_t sampled_vocab_size);

  // logits    [>= sampled_vocab_size] f32; bias and penalties are applied in place
  // position  of the token to choose, counted from the sequence's start; keys the draw with the
  // seed history   used when TokenHistory::NeededBy(params) Order: logit bias; repetition,
  // frequency and presence penalty; temperature; top-k (exactly k, ties by lower id); top-p (the
  // fewest most likely ids whose mass reaches top_p, at least one); min-p (relative to the most
  // likely); softmax over the rest; draw. Greedy takes the highest logit after the penalties, the
  // lowest id among equals. Cost at 151,936 ids: docs/performance.md. kInternal: a logit is NaN or
  // infinite (which, where).
  absl::StatusOr<int32_t> Choose(const SamplingParams& params, const TokenHistory& history,
                                 int64_t position, std::span<float> logits);

  // How many of a row's highest logits ChooseFromTop asks for, `most` at the most; 0: Choose with
  // all logits it must be.
  int32_t TopNeeded(const SamplingParams& params, int32_t most) const;

  // What Choose returns, the same bits throughout, from the highest logits of a row whose logits
  // are within kLogitBound: those of ids below sampled_vocab_size, TopNeeded(params) or more, by
  // ScoresHigher. None if an id that is not among them might be chosen, after penalties or with
  // more than these above min-p: Choose it must be.
  std::optional<int32_t> ChooseFromTop(const SamplingParams& params, const TokenHistory& history,
                                       int64_t position, std::span<const ScoredId> top);

 private:
  int32_t Draw(const SamplingParams& params, double uniform, float max,
               std::span<const float> logits);
  // Top-p, min-p and the draw from candidates_, which have weights; `total` is the sum of all that
  // top-k left.
  int32_t DrawFromCandidates(const SamplingParams& params, double uniform, double total);
  bool TakesTopK(const SamplingParams& params) const;
  int32_t DrawFromAll(double uniform, double total) const;

  int32_t sampled_vocab_size_;
  std::vector<float> weights_;         // exp((logit - max) / temperature), unnormalised
  std::vector<ScoredId> candidates_;   // what is left after the filters
  std::vector<ScoredId> partitioned_;  // scratch of top-p
};

}  // namespace banyan::trunk
