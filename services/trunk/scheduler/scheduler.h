// Continuous batching on ids: which rows go through the model next, and where their state lies.
//
// A step holds, within max_batch_tokens rows, or max_mixed_tokens where there are rows of the first
// kind,
//   1. one row of every decoding sequence;
//   2. pieces of at most kDeltaNetChunkTokens (64) tokens of the others, dealt one at a time in
//      turn, until the rows are used up or nobody wants more. A sequence that got a piece goes to
//      the end of the turn, also across steps. A piece that does not fit into what is left (pieces
//      of a prompt end at multiples of 64 or at its end) keeps its turn, smaller ones may fill up.
// A sequence lost from the state recomputes its prompt in such pieces, then its generated tokens.
//
// Sequences start in order of age when a slot is free and the free pages cover what all running
// ones still need for their known tokens and the next 64 of each. Pages are taken when rows need
// them. When none is left the youngest running sequence gives back everything and waits; the
// youngest itself just skips steps until an older one ends.
//
// Bounds (tests: scheduler_fairness_test.cc). With S = max_sequences, d decoding ones and
// U = floor((rows - d) / 64) >= 1 pieces a step of so many rows:
//   - a decoding sequence with pages gets a row in every step;
//   - of k sequences in turn each gets a piece within ceil(k / U) steps, whatever else arrives;
//   - the oldest sequence always has pages, so it ends; then the next is the oldest.
// Architecture: docs/architecture.md, "Scheduling".
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "services/trunk/engine/step.h"
#include "services/trunk/scheduler/sequence.h"
#include "services/trunk/state/page_allocator.h"
#include "services/trunk/state/slot_allocator.h"

namespace banyan::trunk {

// Thread-compatible; no clock, no locks, no model. Every call is deterministic.
class Scheduler {
 public:
  struct Options {
    int32_t max_batch_tokens = 0;  // at least max_sequences + 63 (CHECK): a piece always fits
    // The same, and at most that, while a sequence decodes; 0: max_batch_tokens.
    int32_t max_mixed_tokens = 0;
    int32_t max_sequences = 0;  // running at once
    int32_t num_slots = 0;      // at least max_sequences (CHECK)
    int32_t num_pages = 0;
  };

  struct Plan {
    Step step;                         // borrows the plan's arrays; empty when nobody is here
    std::vector<Sequence*> sequences;  // of step.segments, same order
    std::vector<Sequence*> started;    // got a slot in this call (again, after a preemption)
    int32_t decode_rows = 0;
    int32_t prefill_rows = 0;    // prompt tokens seen for the first time or again
    int32_t recompute_rows = 0;  // generated tokens on their way back into the state
  };

  explicit Scheduler(const Options& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Takes a sequence, borrowed until Remove. Ids ascend over calls (CHECK). It must fit alone:
  // PagesFor(max_tokens) <= num_pages (CHECK).
  void Add(Sequence* sequence);

  // Frees slot, pages and place in the queue; at any time but between NextStep and Commit or Reset.
  void Remove(Sequence* sequence);

  // Forms the next step. Never empty while sequences are here. The plan lives until the next call;
  // it is followed by Commit or Reset. After Commit every sequence that awaits_token() must have
  // got one, or be removed, before the next call (CHECK).
  const Plan& NextStep();

  // The step ran: its rows are in the state.
  void Commit();

  // The step failed: its sequences compute again from position 0, in the same slots and pages.
  void Reset();

  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_free_pages() const { return pages_.num_free(); }
  int32_t num_used_slots() const { return slots_.num_used(); }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  int32_t ReservedPages(const Sequence& sequence) const;
  void StartWaiting();
  void PlanDecodeRows();
  void DealPieces();
  int32_t NextPiece(const Sequence& sequence, int32_t rows_left) const;
  bool EnsurePages(Sequence* sequence, int32_t num_tokens);
  void PreemptYoungest();
  void Release(Sequence* sequence);
  void FillStep();
  void ForgetTurn(const Sequence* sequence);

  const Options options_;
  PageAllocator pages_;
  SlotAllocator slots_;
  // Both in order of age; whoever runs is older than whoever waits.
  std::vector<Sequence*> running_;
  std::deque<Sequence*> waiting_;
  std::deque<Sequence*> turn_;  // running and not decoding; next to be served first
  int32_t rows_left_ = 0;
  int64_t next_step_id_ = 0;
  int64_t last_added_id_ = -1;
  int64_t num_preemptions_ = 0;
  bool in_step_ = false;

  Plan plan_;
  std::vector<int32_t> token_ids_;
  std::vector<StepSegment> segments_;
};

}  // namespace banyan::trunk
