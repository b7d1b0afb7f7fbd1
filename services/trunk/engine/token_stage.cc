#include "services/trunk/engine/token_stage.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

// After a row of which the highest logits were not enough: each costs its step a second product.
constexpr int32_t kTokensBetweenTries = 16;

bool WantsLogprobs(const Request& request) { return request.logprobs || request.num_logprobs > 0; }

}  // namespace

TokenStage::TokenStage(ForwardPass* forward, int32_t sampled_vocab_size, const Clock* clock)
    : forward_(forward),
      sampled_vocab_size_(sampled_vocab_size),
      clock_(clock),
      sampler_(sampled_vocab_size) {}

std::span<Choice> TokenStage::Run(std::span<const StepSegment> segments,
                                  std::span<Generation* const> generations) {
  CollectWants(segments, generations);
  logits_time_ = sampling_time_ = absl::ZeroDuration();
  const auto at_once = static_cast<size_t>(forward_->limits().max_logits_rows);
  const std::span<const Want> wants(wants_);
  for (size_t begin = 0; begin < wants.size(); begin += at_once) {
    again_.clear();
    Serve(wants.subspan(begin, std::min(at_once, wants.size() - begin)));
    if (!again_.empty()) Serve(again_);
  }
  std::erase_if(choices_, [](const Choice& choice) {
    return choice.status.ok() && !choice.generation->sequence.awaits_token();
  });
  return choices_;
}

void TokenStage::Serve(std::span<const Want> wants) {
  const absl::Time start = clock_->Now();
  const absl::Status computed = RunHead(wants);
  const absl::Time ready = clock_->Now();
  const auto vocab = static_cast<size_t>(forward_->limits().vocab_size);
  const auto k = static_cast<size_t>(top_k_);
  size_t num_full = 0;
  size_t num_top = 0;
  for (const Want& want : wants) {
    const size_t at = want.top_needed > 0 ? num_top++ : num_full++;
    Choice* const choice = &choices_[static_cast<size_t>(want.choice_idx)];
    if (!choice->status.ok()) continue;
    if (!computed.ok()) {
      choice->status = StatusF(absl::StatusCode::kInternal, "logits for position {}: {}",
                               want.position, ToStd(computed.message()));
    } else if (want.top_needed == 0) {
      choice->status = Apply(want, choice, std::span(logits_).subspan(at * vocab, vocab));
    } else if (!ApplyTop(want, choice, std::span(top_).subspan(at * k, k), bounded_[at] != 0)) {
      again_.push_back(want);
      again_.back().top_needed = 0;
    }
  }
  logits_time_ += ready - start;
  sampling_time_ += clock_->Now() - ready;
}

absl::Status TokenStage::RunHead(std::span<const Want> wants) {
  full_rows_.clear();
  top_rows_.clear();
  top_k_ = 0;
  for (const Want& want : wants) {
    (want.top_needed > 0 ? top_rows_ : full_rows_).push_back(want.row);
    top_k_ = std::max(top_k_, want.top_needed);
  }
  const int32_t vocab = forward_->limits().vocab_size;
  const size_t floats = full_rows_.size() * static_cast<size_t>(vocab);
  if (logits_.size() < floats) logits_.resize(floats);
  top_.resize(top_rows_.size() * static_cast<size_t>(top_k_));
  bounded_.resize(top_rows_.size());
  return forward_->RunHead({.full_rows = full_rows_,
                            .logits = logits_.data(),
                            .stride = vocab,
                            .top_rows = top_rows_,
                            .num_ids = sampled_vocab_size_,
                            .k = top_k_,
                            .top = top_,
                            .bounded = bounded_});
}

void TokenStage::CollectWants(std::span<const StepSegment> segments,
                              std::span<Generation* const> generations) {
  CHECK(segments.size() == generations.size());
  choices_.clear();
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
        wants_.push_back({.row = segment.first_row + p - segment.first_position,
                          .choice_idx = choice_idx,
                          .prompt_token = sequence.tokens[static_cast<size_t>(p) + 1],
                          .position = p + 1,
                          .top_needed = 0});
      }
    }
    if (sequence.awaits_token() && !generation->prompt_only()) {
      wants_.push_back({.row = segment.first_row + segment.num_rows - 1,
                        .choice_idx = choice_idx,
                        .prompt_token = -1,
                        .position = sequence.num_tokens(),
                        .top_needed = TopNeededBy(*generation)});
    }
  }
}

int32_t TokenStage::TopNeededBy(const Generation& generation) const {
  if (WantsLogprobs(generation.request)) return 0;
  if (generation.sequence.num_tokens() < generation.all_logits_until) return 0;
  return sampler_.TopNeeded(generation.request.sampling, forward_->limits().max_top_logits);
}

bool TokenStage::ApplyTop(const Want& want, Choice* choice, std::span<const ScoredId> top,
                          bool bounded) {
  if (!bounded) return false;
  Generation& generation = *choice->generation;
  const std::optional<int32_t> chosen =
      sampler_.ChooseFromTop(generation.request.sampling, generation.history, want.position, top);
  if (!chosen.has_value()) {
    generation.all_logits_until = want.position + kTokensBetweenTries;
    return false;
  }
  choice->token_id = *chosen;
  return true;
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
  const bool wants_logprobs = WantsLogprobs(request);
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
