#include "services/trunk/scheduler/scheduler.h"

#include <algorithm>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {

constexpr int32_t kPieceTokens = kDeltaNetChunkTokens;
constexpr int32_t kGrowthTokens =
    kPageTokens;  // room an admitted sequence finds without preempting

}  // namespace

Scheduler::Scheduler(const Options& options)
    : options_(options), pages_(options.num_pages), slots_(options.num_slots) {
  CHECK(options.max_sequences >= 1);
  CHECK(options.num_slots >= options.max_sequences);
  CHECK(options.max_batch_tokens >= options.max_sequences + kPieceTokens - 1);
  if (options.max_mixed_tokens != 0) {
    CHECK(options.max_mixed_tokens >= options.max_sequences + kPieceTokens - 1);
    CHECK(options.max_mixed_tokens <= options.max_batch_tokens);
  }
}

void Scheduler::Add(Sequence* sequence) {
  CHECK(!in_step_);
  CHECK(sequence->id > last_added_id_);
  CHECK(sequence->prompt_tokens > 0 && sequence->computed_tokens == 0);
  CHECK(PagesFor(sequence->max_tokens) <= options_.num_pages);
  last_added_id_ = sequence->id;
  waiting_.push_back(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  CHECK(!in_step_);
  if (sequence->running()) {
    std::erase(running_, sequence);
    Release(sequence);
  } else {
    std::erase(waiting_, sequence);
  }
}

const Scheduler::Plan& Scheduler::NextStep() {
  CHECK(!in_step_);
  plan_.started.clear();
  StartWaiting();
  rows_left_ = options_.max_batch_tokens;
  PlanDecodeRows();
  if (rows_left_ < options_.max_batch_tokens && options_.max_mixed_tokens != 0) {
    rows_left_ -= options_.max_batch_tokens - options_.max_mixed_tokens;
  }
  DealPieces();
  FillStep();
  in_step_ = !segments_.empty();
  CHECK(in_step_ == !running_.empty());
  return plan_;
}

void Scheduler::Commit() {
  CHECK(in_step_);
  in_step_ = false;
  for (Sequence* sequence : plan_.sequences) {
    sequence->computed_tokens += sequence->planned_rows;
    sequence->planned_rows = 0;
    if (sequence->decoding() || sequence->awaits_token()) ForgetTurn(sequence);
  }
}

void Scheduler::Reset() {
  CHECK(in_step_);
  in_step_ = false;
  for (Sequence* sequence : plan_.sequences) {
    sequence->computed_tokens = 0;
    sequence->planned_rows = 0;
    if (std::find(turn_.begin(), turn_.end(), sequence) == turn_.end()) turn_.push_back(sequence);
  }
}

// Pages of the known tokens and of the growth an admitted sequence may count on.
int32_t Scheduler::ReservedPages(const Sequence& sequence) const {
  return PagesFor(std::min(sequence.num_tokens() + kGrowthTokens, sequence.max_tokens));
}

void Scheduler::StartWaiting() {
  int32_t unreserved = pages_.num_free();
  for (const Sequence* sequence : running_) {
    CHECK(!sequence->awaits_token());
    unreserved -=
        std::max(0, ReservedPages(*sequence) - static_cast<int32_t>(sequence->pages.size()));
  }
  while (!waiting_.empty() && num_running() < options_.max_sequences) {
    Sequence* const sequence = waiting_.front();
    unreserved -= ReservedPages(*sequence);
    if (unreserved < 0) return;  // nobody overtakes the oldest: it would starve
    waiting_.pop_front();
    sequence->slot = slots_.Allocate().value();
    CHECK(running_.empty() || running_.back()->id < sequence->id);
    running_.push_back(sequence);
    turn_.push_back(sequence);
    plan_.started.push_back(sequence);
  }
}

void Scheduler::PlanDecodeRows() {
  // Oldest first, so that whoever is preempted has no rows yet; running_ may shrink meanwhile.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* const sequence = running_[i];
    if (!sequence->decoding() || !EnsurePages(sequence, sequence->num_tokens())) continue;
    sequence->planned_rows = 1;
    --rows_left_;
  }
}

void Scheduler::DealPieces() {
  // Whoever cannot be served now keeps the place before those behind; `skipped` counts them.
  size_t skipped = 0;
  while (skipped < turn_.size() && rows_left_ > 0) {
    Sequence* const sequence = turn_[skipped];
    const int32_t piece = NextPiece(*sequence, rows_left_);
    if (piece == 0) {
      ++skipped;
      continue;
    }
    const int64_t preemptions = num_preemptions_;
    const bool has_pages =
        EnsurePages(sequence, sequence->computed_tokens + sequence->planned_rows + piece);
    // A preemption gives rows back and takes places out of the turn: look again from the front.
    skipped = num_preemptions_ == preemptions ? skipped : 0;
    if (!has_pages) {
      ++skipped;
      continue;
    }
    sequence->planned_rows += piece;
    rows_left_ -= piece;
    ForgetTurn(sequence);
    turn_.push_back(sequence);
  }
}

// Rows of the sequence's next piece, 0 when it wants none or the piece does not fit.
int32_t Scheduler::NextPiece(const Sequence& sequence, int32_t rows_left) const {
  const int32_t begin = sequence.computed_tokens + sequence.planned_rows;
  if (begin < sequence.prompt_tokens) {
    const int32_t piece = std::min(kPieceTokens, sequence.prompt_tokens - begin);
    return piece <= rows_left ? piece : 0;
  }
  // A segment holds prompt or generated tokens, not both.
  if (sequence.computed_tokens < sequence.prompt_tokens) return 0;
  return std::min({kPieceTokens, sequence.num_tokens() - begin, rows_left});
}

// False when the sequence has to sit this step out: it is the youngest and pages are short.
bool Scheduler::EnsurePages(Sequence* sequence, int32_t num_tokens) {
  const int32_t missing = PagesFor(num_tokens) - static_cast<int32_t>(sequence->pages.size());
  if (missing <= 0) return true;
  while (pages_.num_free() < missing) {
    if (running_.back() == sequence) return false;
    PreemptYoungest();
  }
  return pages_.Allocate(missing, &sequence->pages);
}

void Scheduler::PreemptYoungest() {
  Sequence* const victim = running_.back();
  running_.pop_back();
  rows_left_ += victim->planned_rows;
  Release(victim);
  waiting_.push_front(victim);
  ++num_preemptions_;
}

void Scheduler::Release(Sequence* sequence) {
  pages_.Free(&sequence->pages);
  slots_.Free(sequence->slot);
  ForgetTurn(sequence);
  sequence->slot = -1;
  sequence->computed_tokens = 0;
  sequence->planned_rows = 0;
}

void Scheduler::ForgetTurn(const Sequence* sequence) {
  const auto found = std::find(turn_.begin(), turn_.end(), sequence);
  if (found != turn_.end()) turn_.erase(found);
}

void Scheduler::FillStep() {
  token_ids_.clear();
  segments_.clear();
  plan_.sequences.clear();
  plan_.decode_rows = plan_.prefill_rows = plan_.recompute_rows = 0;
  for (const bool decode : {true, false}) {
    for (Sequence* sequence : running_) {
      if (sequence->planned_rows == 0 || sequence->decoding() != decode) continue;
      const int32_t begin = sequence->computed_tokens;
      const int32_t rows = sequence->planned_rows;
      const bool chunked = begin < sequence->prompt_tokens;
      segments_.push_back({.first_row = static_cast<int32_t>(token_ids_.size()),
                           .num_rows = rows,
                           .first_position = begin,
                           .slot = sequence->slot,
                           .pages = sequence->pages,
                           .chunked = chunked,
                           .prompt_tokens = chunked ? sequence->prompt_tokens : 0});
      token_ids_.insert(token_ids_.end(), sequence->tokens.begin() + begin,
                        sequence->tokens.begin() + begin + rows);
      plan_.sequences.push_back(sequence);
      (decode ? plan_.decode_rows : chunked ? plan_.prefill_rows : plan_.recompute_rows) += rows;
    }
  }
  plan_.step = {.step_id = next_step_id_, .token_ids = token_ids_, .segments = segments_};
  if (!segments_.empty()) ++next_step_id_;
}

}  // namespace banyan::trunk
