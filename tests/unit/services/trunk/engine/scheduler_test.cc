#include "services/trunk/scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

namespace banyan::trunk {
namespace {

std::vector<int32_t> Prompt(int32_t size) {
  std::vector<int32_t> ids(static_cast<size_t>(size));
  for (int32_t i = 0; i < size; ++i) ids[static_cast<size_t>(i)] = i % 50;
  return ids;
}

class SchedulerTest : public ::testing::Test {
 protected:
  Sequence* Add(Scheduler* scheduler, int32_t prompt, int32_t max_new) {
    owned_.push_back(std::make_unique<Sequence>(next_id_++, Prompt(prompt), max_new));
    scheduler->Add(owned_.back().get());
    return owned_.back().get();
  }

  // Commits the step and gives a token to whoever awaits one, ending sequences that are full.
  static void Finish(Scheduler* scheduler, const Scheduler::Plan& plan) {
    const std::vector<Sequence*> sequences = plan.sequences;
    scheduler->Commit();
    for (Sequence* sequence : sequences) {
      if (!sequence->awaits_token()) continue;
      sequence->tokens.push_back(7);
      if (sequence->num_tokens() == sequence->max_tokens) scheduler->Remove(sequence);
    }
  }

  static const StepSegment* SegmentOf(const Scheduler::Plan& plan, const Sequence* sequence) {
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      if (plan.sequences[i] == sequence) return &plan.step.segments[i];
    }
    return nullptr;
  }

  std::vector<std::unique_ptr<Sequence>> owned_;
  int64_t next_id_ = 1;
};

TEST_F(SchedulerTest, NothingToDo) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_sequences = 1, .num_slots = 1, .num_pages = 4});
  EXPECT_TRUE(scheduler.NextStep().step.segments.empty());
  EXPECT_TRUE(scheduler.NextStep().sequences.empty());
}

TEST_F(SchedulerTest, OnePromptTakesTheWholeBudgetInMultiplesOf64) {
  Scheduler scheduler(
      {.max_batch_tokens = 200, .max_sequences = 4, .num_slots = 4, .num_pages = 16});
  Sequence* const a = Add(&scheduler, 450, 3);
  const int32_t kFirst[] = {0, 192, 384};
  const int32_t kRows[] = {192, 192, 66};
  for (int i = 0; i < 3; ++i) {
    const Scheduler::Plan& plan = scheduler.NextStep();
    ASSERT_EQ(plan.step.segments.size(), 1u);
    const StepSegment& segment = plan.step.segments[0];
    EXPECT_EQ(segment.first_position, kFirst[i]);
    EXPECT_EQ(segment.num_rows, kRows[i]);
    EXPECT_TRUE(segment.chunked);
    EXPECT_EQ(plan.prefill_rows, kRows[i]);
    EXPECT_EQ(plan.step.token_ids[0], a->tokens[static_cast<size_t>(kFirst[i])]);
    EXPECT_EQ(plan.started.size(), i == 0 ? 1u : 0u);
    Finish(&scheduler, plan);
  }
  const Scheduler::Plan& plan = scheduler.NextStep();
  EXPECT_EQ(plan.decode_rows, 1);
  EXPECT_EQ(plan.step.segments[0].first_position, 450);
  EXPECT_FALSE(plan.step.segments[0].chunked);
  EXPECT_EQ(plan.step.token_ids[0], 7);
}

// Whatever a step has of it; what it generates is not of the prompt.
TEST_F(SchedulerTest, SegmentsOfAPromptSayItsLength) {
  Scheduler scheduler(
      {.max_batch_tokens = 256, .max_sequences = 3, .num_slots = 3, .num_pages = 64});
  std::map<const Sequence*, int32_t> lengths;
  for (const int32_t length : {63, 512, 1025}) lengths[Add(&scheduler, length, 3)] = length;
  std::map<int32_t, int32_t> rows;
  while (scheduler.num_running() + scheduler.num_waiting() > 0) {
    const Scheduler::Plan& plan = scheduler.NextStep();
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const StepSegment& segment = plan.step.segments[i];
      EXPECT_EQ(segment.prompt_tokens, segment.chunked ? lengths[plan.sequences[i]] : 0);
      if (segment.chunked) rows[segment.prompt_tokens] += segment.num_rows;
    }
    Finish(&scheduler, plan);
  }
  EXPECT_EQ(rows, (std::map<int32_t, int32_t>{{63, 63}, {512, 512}, {1025, 1025}}));
}

// While somebody decodes the steps are shorter; 64 rows of a prompt always fit.
TEST_F(SchedulerTest, StepsWithDecodingSequencesHaveFewerRows) {
  Scheduler scheduler({.max_batch_tokens = 1000,
                       .max_mixed_tokens = 130,
                       .max_sequences = 3,
                       .num_slots = 3,
                       .num_pages = 64});
  Add(&scheduler, 10, 3);
  const Scheduler::Plan* plan = &scheduler.NextStep();
  EXPECT_EQ(plan->prefill_rows, 10);
  Finish(&scheduler, *plan);
  Sequence* const b = Add(&scheduler, 1200, 1);
  for (int i = 0; i < 2; ++i) {  // 129 rows left: two pieces
    plan = &scheduler.NextStep();
    EXPECT_EQ(plan->decode_rows, 1);
    EXPECT_EQ(plan->prefill_rows, 128);
    Finish(&scheduler, *plan);
  }
  plan = &scheduler.NextStep();
  EXPECT_EQ(plan->decode_rows, 0);
  EXPECT_EQ(SegmentOf(*plan, b)->num_rows, 1200 - 2 * 128);
}

TEST_F(SchedulerTest, PromptsShareTheBudgetPieceByPieceAndTailsFillUp) {
  // 100 rows: one whole piece, then 36 rows that only a tail can use.
  Scheduler scheduler(
      {.max_batch_tokens = 100, .max_sequences = 4, .num_slots = 4, .num_pages = 64});
  Sequence* const a = Add(&scheduler, 300, 1);
  Sequence* const b = Add(&scheduler, 300, 1);
  Sequence* const c = Add(&scheduler, 20, 1);
  const Scheduler::Plan* plan = &scheduler.NextStep();
  EXPECT_EQ(SegmentOf(*plan, a)->num_rows, 64);
  EXPECT_EQ(SegmentOf(*plan, b), nullptr);
  EXPECT_EQ(SegmentOf(*plan, c)->num_rows, 20);
  Finish(&scheduler, *plan);
  plan = &scheduler.NextStep();
  EXPECT_EQ(SegmentOf(*plan, b)->num_rows, 64) << "b kept its turn";
  EXPECT_EQ(SegmentOf(*plan, a), nullptr);
  Finish(&scheduler, *plan);
  plan = &scheduler.NextStep();
  EXPECT_EQ(SegmentOf(*plan, a)->num_rows, 64);
  EXPECT_EQ(SegmentOf(*plan, a)->first_position, 64);
}

TEST_F(SchedulerTest, DecodersComeFirstAndJoinAtAnyStep) {
  Scheduler scheduler(
      {.max_batch_tokens = 128, .max_sequences = 3, .num_slots = 3, .num_pages = 64});
  Sequence* const a = Add(&scheduler, 5, 10);
  Finish(&scheduler, scheduler.NextStep());
  Sequence* const b = Add(&scheduler, 1000, 10);
  const Scheduler::Plan& plan = scheduler.NextStep();
  ASSERT_EQ(plan.sequences, (std::vector<Sequence*>{a, b}));
  EXPECT_EQ(plan.step.segments[0].num_rows, 1);
  EXPECT_EQ(plan.step.segments[1].num_rows, 64) << "127 rows hold one piece";
  EXPECT_EQ(plan.step.segments[1].first_row, 1);
}

TEST_F(SchedulerTest, SlotsLimitWhoRuns) {
  Scheduler scheduler(
      {.max_batch_tokens = 128, .max_sequences = 2, .num_slots = 5, .num_pages = 64});
  Sequence* const a = Add(&scheduler, 5, 10);
  Add(&scheduler, 5, 10);
  Sequence* const c = Add(&scheduler, 5, 10);
  Finish(&scheduler, scheduler.NextStep());
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.Remove(a);
  const Scheduler::Plan& plan = scheduler.NextStep();
  EXPECT_EQ(plan.started, std::vector<Sequence*>{c});
  EXPECT_EQ(scheduler.num_used_slots(), 2);
}

TEST_F(SchedulerTest, YoungestGivesUpItsPagesAndRecomputesInTheTwoForms) {
  // Four pages. a grows into the third and fourth while b holds one or two.
  Scheduler scheduler({.max_batch_tokens = 66, .max_sequences = 2, .num_slots = 2, .num_pages = 4});
  Sequence* const a = Add(&scheduler, 10, 240);
  Sequence* const b = Add(&scheduler, 64, 100);
  while (scheduler.num_preemptions() == 0) {
    Finish(&scheduler, scheduler.NextStep());
    ASSERT_LT(b->num_tokens(), 200);
  }
  const int32_t b_tokens = b->num_tokens();
  ASSERT_GT(b_tokens, 66) << "b had generated several tokens";
  EXPECT_FALSE(b->running());
  EXPECT_TRUE(b->pages.empty());
  EXPECT_EQ(b->computed_tokens, 0);
  while (!b->running()) Finish(&scheduler, scheduler.NextStep());
  EXPECT_EQ(a->num_tokens(), a->max_tokens) << "b waits until the known tokens fit";
  EXPECT_EQ(b->num_tokens(), b_tokens);
  EXPECT_EQ(b->computed_tokens, 64) << "the prompt alone: one form a segment";
  const Scheduler::Plan& plan = scheduler.NextStep();
  EXPECT_EQ(plan.recompute_rows, b_tokens - 64);
  EXPECT_FALSE(plan.step.segments[0].chunked);
  Finish(&scheduler, plan);
  EXPECT_EQ(b->num_tokens(), b_tokens + 1);
  EXPECT_TRUE(b->decoding());
}

TEST_F(SchedulerTest, YoungestShortOfPagesSitsOutAndKeepsItsState) {
  Scheduler scheduler(
      {.max_batch_tokens = 128, .max_sequences = 2, .num_slots = 2, .num_pages = 5});
  Sequence* const a = Add(&scheduler, 1, 127);  // two pages, to the end
  Sequence* const b = Add(&scheduler, 124, 120);
  int sat_out = 0;
  while (scheduler.num_running() + scheduler.num_waiting() > 0 || sat_out == 0) {
    const Scheduler::Plan& plan = scheduler.NextStep();
    if (SegmentOf(plan, b) == nullptr && b->running()) {
      ++sat_out;
      EXPECT_EQ(b->computed_tokens, 192) << "three full pages";
      EXPECT_TRUE(a->running());
    }
    Finish(&scheduler, plan);
  }
  EXPECT_EQ(sat_out, 127 - 69) << "from its 69th token to a's last";
  EXPECT_EQ(scheduler.num_preemptions(), 0);
  EXPECT_EQ(b->num_tokens(), 244);
  EXPECT_EQ(scheduler.num_free_pages(), 5);
}

TEST_F(SchedulerTest, NobodyOvertakesTheOldestWaiting) {
  Scheduler scheduler(
      {.max_batch_tokens = 128, .max_sequences = 4, .num_slots = 4, .num_pages = 6});
  Sequence* const a = Add(&scheduler, 200, 56);  // reserves four of six
  Finish(&scheduler, scheduler.NextStep());
  Sequence* const large = Add(&scheduler, 180, 76);
  Sequence* const small = Add(&scheduler, 3, 4);
  while (a->num_tokens() < a->max_tokens) {
    Finish(&scheduler, scheduler.NextStep());
    if (a->num_tokens() == a->max_tokens) break;
    ASSERT_FALSE(large->running());
    ASSERT_FALSE(small->running());
  }
  scheduler.NextStep();
  EXPECT_TRUE(large->running());
  EXPECT_TRUE(small->running());
}

TEST_F(SchedulerTest, ResetStartsTheStepsSequencesAgainInPlace) {
  Scheduler scheduler(
      {.max_batch_tokens = 128, .max_sequences = 2, .num_slots = 2, .num_pages = 16});
  Sequence* const a = Add(&scheduler, 70, 10);
  Finish(&scheduler, scheduler.NextStep());
  Finish(&scheduler, scheduler.NextStep());
  Sequence* const b = Add(&scheduler, 100, 10);
  const Scheduler::Plan& failed = scheduler.NextStep();
  ASSERT_EQ(failed.sequences.size(), 2u);
  const std::vector<int32_t> pages = a->pages;
  const int32_t slot = a->slot;
  scheduler.Reset();
  EXPECT_EQ(a->computed_tokens, 0);
  EXPECT_EQ(b->computed_tokens, 0);
  EXPECT_EQ(a->pages, pages);
  EXPECT_EQ(a->slot, slot);
  const int32_t tokens = a->num_tokens();
  while (scheduler.num_running() > 0) Finish(&scheduler, scheduler.NextStep());
  EXPECT_GT(a->num_tokens(), tokens);
  EXPECT_EQ(a->num_tokens(), 80);
  EXPECT_EQ(b->num_tokens(), 110);
  EXPECT_EQ(scheduler.num_preemptions(), 0);
  EXPECT_EQ(scheduler.num_free_pages(), 16);
}

TEST_F(SchedulerTest, RemoveFreesEverythingAtOnce) {
  Scheduler scheduler(
      {.max_batch_tokens = 128, .max_sequences = 1, .num_slots = 1, .num_pages = 16});
  Sequence* const a = Add(&scheduler, 300, 10);
  Sequence* const b = Add(&scheduler, 300, 10);
  Finish(&scheduler, scheduler.NextStep());
  scheduler.Remove(b);  // waiting
  EXPECT_EQ(scheduler.num_waiting(), 0);
  scheduler.Remove(a);  // in the middle of its prompt
  EXPECT_EQ(scheduler.num_free_pages(), 16);
  EXPECT_EQ(scheduler.num_used_slots(), 0);
  EXPECT_TRUE(scheduler.NextStep().step.segments.empty());
}

using SchedulerDeathTest = SchedulerTest;

TEST_F(SchedulerDeathTest, BrokenCallersAreOurBugs) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_sequences = 1, .num_slots = 1, .num_pages = 2});
  EXPECT_DEATH(Add(&scheduler, 100, 29), "CHECK failed") << "129 tokens need three pages";
  Sequence* const a = Add(&scheduler, 10, 10);
  EXPECT_DEATH(scheduler.Add(a), "CHECK failed");
  scheduler.NextStep();
  EXPECT_DEATH(scheduler.NextStep(), "CHECK failed") << "the step is still under way";
  scheduler.Commit();
  EXPECT_DEATH(scheduler.NextStep(), "CHECK failed") << "a token is missing";
  EXPECT_DEATH(
      Scheduler({.max_batch_tokens = 65, .max_sequences = 3, .num_slots = 3, .num_pages = 2}),
      "CHECK failed");
}

}  // namespace
}  // namespace banyan::trunk
