#include "services/trunk/engine/token_stage.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::trunk {

TokenStage::TokenStage(ForwardPass* forward, int32_t sampled_vocab_size, const Clock* clock)
    : forward_(forward),
      sampled_vocab_size_(sampled_vocab_size),
      clock_(clock),
      sampler_(sampled_vocab_size) {}

std::span<Choice> TokenStage::Run(std::span<const StepSegment> segments,
                                  std::span<Generation* const> generations) {
  CollectWants(segments, generations);
  logits_time_ = sampling_time_ = absl::ZeroDuration();
  const auto vocab = static_cast<size_t>(forward_->limits().vocab_size);
  const auto at_once = static_cast<size_t>(forward_->limits().max_logits_rows);
  for (size_t begin = 0; begin < rows_.size(); begin += at_once) {
    const size_t count = std::min(at_once, rows_.size() - begin);
    if (logits_.size() < count * vocab) logits_.resize(count * vocab);
    const absl::Time start = clock_->Now();
    const absl::Status computed = forward_->ComputeLogits(std::span(rows_).subspan(begin, count),
                                                          std::span(logits_).first(count * vocab));
    const absl::Time ready = clock_->Now();
    for (size_t i = 0; i < count; ++i) {
      const Want& want = wants_[begin + i];
      Choice* const choice = &choices_[static_cast<size_t>(want.choice_idx)];
      if (!choice->status.ok()) continue;
      if (!computed.ok()) {
        choice->status = StatusF(absl::StatusCode::kInternal, "logits for position {}: {}",
                                 want.position, ToStd(computed.message()));
        continue;
      }
      choice->status = Apply(want, choice, std::span(logits_).subspan(i * vocab, vocab));
    }
    logits_time_ += ready - start;
    sampling_time_ += clock_->Now() - ready;
  }
  std::erase_if(choices_, [](const Choice& choice) {
    return choice.status.ok() && !choice.generation->sequence.awaits_token();
  });
  return choices_;
}

void TokenStage::CollectWants(std::span<const StepSegment> segments,
                              std::span<Generation* const> generations) {
  CHECK(segments.size() == generations.size());
  choices_.clear();
  rows_.clear();
  wants_.clear();
  for (size_t i = 0; i < segments.size(); ++i) {
    const StepSegment& segment = segments[i];
    Generation* const generation = generations[i];
    const Sequence& sequence = generation->sequence;
    const auto choice_idx = static_cast<int32_t>(i);
    choices_.push_back({.generation = generation, .status = {}, .logprobs = {}});
    if (generation->request.prompt_logprobs) {
      // The row at position p tells about the prompt's token p + 1.
      const int32_t end =
          std::min(segment.first_position + segment.num_rows, sequence.prompt_tokens - 1);
      for (int32_t p = std::max(segment.first_position, generation->prompt_logprobs_done); p < end;
           ++p) {
        rows_.push_back(segment.first_row + p - segment.first_position);
        wants_.push_back({choice_idx, sequence.tokens[static_cast<size_t>(p) + 1], p + 1});
      }
    }
    if (sequence.awaits_token() && !generation->prompt_only()) {
      rows_.push_back(segment.first_row + segment.num_rows - 1);
      wants_.push_back({choice_idx, -1, sequence.num_tokens()});
    }
  }
}

absl::Status TokenStage::Apply(const Want& want, Choice* choice, std::span<float> logits) {
  Generation& generation = *choice->generation;
  const Request& request = generation.request;
  if (want.prompt_token >= 0) {
    ASSIGN_OR_RETURN(
        TokenLogprobs record,
        ComputeLogprobs(logits, sampled_vocab_size_, want.prompt_token, request.num_logprobs));
    generation.prompt_logprobs.push_back(std::move(record));
    ++generation.prompt_logprobs_done;
    return absl::OkStatus();
  }
  // Choose applies bias and penalties in place; log-probabilities are of the model's own logits.
  const bool wants_logprobs = request.logprobs || request.num_logprobs > 0;
  if (wants_logprobs) own_logits_.assign(logits.begin(), logits.end());
  ASSIGN_OR_RETURN(choice->token_id,
                   sampler_.Choose(request.sampling, generation.history, want.position, logits));
  if (wants_logprobs) {
    ASSIGN_OR_RETURN(choice->logprobs, ComputeLogprobs(own_logits_, sampled_vocab_size_,
                                                       choice->token_id, request.num_logprobs));
  }
  return absl::OkStatus();
}

}  // namespace banyan::trunk
