// The bounds that scheduler.h states, under the workloads that would break them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "services/trunk/scheduler/scheduler.h"

namespace banyan::trunk {
namespace {

// Drives a scheduler and measures, for every running sequence, how many steps in a row it got no
// row, against the bound of its kind.
class Watch {
 public:
  explicit Watch(const Scheduler::Options& options) : options_(options), scheduler_(options) {}

  Sequence* Add(int32_t prompt, int32_t max_new) {
    const int64_t id = next_id_++;
    auto& entry = entries_[id];
    entry.sequence = std::make_unique<Sequence>(
        id, std::vector<int32_t>(static_cast<size_t>(prompt), 3), max_new);
    scheduler_.Add(entry.sequence.get());
    return entry.sequence.get();
  }

  // A step; sequences that are full leave. Pages must be plentiful.
  void Step() {
    const Scheduler::Plan& plan = scheduler_.NextStep();
    int32_t decoding = 0;
    int32_t in_turn = 0;
    for (auto& [id, entry] : entries_) {
      if (!entry.sequence->running()) continue;
      entry.sequence->decoding() ? ++decoding : ++in_turn;
    }
    const int32_t pieces = (options_.max_batch_tokens - decoding) / kDeltaNetChunkTokens;
    ASSERT_GE(pieces, 1);
    int32_t rows = 0;
    for (auto& [id, entry] : entries_) {
      const Sequence& sequence = *entry.sequence;
      if (!sequence.running()) continue;
      rows += sequence.planned_rows;
      if (sequence.planned_rows > 0) {
        entry.steps_without = 0;
        continue;
      }
      ++entry.steps_without;
      ASSERT_FALSE(sequence.decoding()) << "a decoding sequence was left out";
      // The bound with the most sequences in turn and the fewest pieces seen while it waited.
      entry.worst_in_turn = std::max(entry.worst_in_turn, in_turn);
      entry.worst_pieces = std::min(entry.worst_pieces, pieces);
      ASSERT_LT(entry.steps_without,
                (entry.worst_in_turn + entry.worst_pieces - 1) / entry.worst_pieces)
          << "sequence " << id << ", " << in_turn << " in turn, " << pieces << " pieces a step";
    }
    ASSERT_EQ(rows, static_cast<int32_t>(plan.step.token_ids.size()));
    ASSERT_LE(rows, options_.max_batch_tokens);
    const std::vector<Sequence*> sequences = plan.sequences;
    scheduler_.Commit();
    ++num_steps_;
    for (Sequence* sequence : sequences) {
      Entry& entry = entries_[sequence->id];
      entry.worst_in_turn = 0;
      entry.worst_pieces = 1 << 20;
      if (!sequence->awaits_token()) continue;
      sequence->tokens.push_back(1);
      if (sequence->num_tokens() < sequence->max_tokens) continue;
      scheduler_.Remove(sequence);
      entries_.erase(sequence->id);
    }
  }

  bool Has(int64_t id) const { return entries_.contains(id); }
  size_t size() const { return entries_.size(); }
  int64_t num_steps() const { return num_steps_; }
  Scheduler& scheduler() { return scheduler_; }

 private:
  struct Entry {
    std::unique_ptr<Sequence> sequence;
    int32_t steps_without = 0;
    int32_t worst_in_turn = 0;
    int32_t worst_pieces = 1 << 20;
  };

  Scheduler::Options options_;
  Scheduler scheduler_;
  std::map<int64_t, Entry> entries_;
  int64_t next_id_ = 1;
  int64_t num_steps_ = 0;
};

constexpr Scheduler::Options kPlenty = {
    .max_batch_tokens = 256, .max_sequences = 32, .num_slots = 32, .num_pages = 100000};

TEST(SchedulerFairnessTest, DecodersGetARowInEveryStepUnderAStreamOfLongPrompts) {
  Watch watch(kPlenty);
  Sequence* const decoder = watch.Add(4, 400);
  watch.Step();
  const int64_t id = decoder->id;
  int64_t steps = 1;
  while (watch.Has(id)) {
    while (watch.size() < 40) watch.Add(20000, 5);
    ASSERT_NO_FATAL_FAILURE(watch.Step());
    ++steps;
  }
  EXPECT_EQ(steps, 400) << "one token a step";
}

TEST(SchedulerFairnessTest, AShortPromptWaitsOneRoundOfTheTurnNotForLongPrompts) {
  Watch watch(kPlenty);
  for (int i = 0; i < 31; ++i) watch.Add(20000, 5);
  for (int i = 0; i < 10; ++i) ASSERT_NO_FATAL_FAILURE(watch.Step());
  Sequence* const hello = watch.Add(60, 5);
  int64_t steps = 0;
  while (hello->num_tokens() == 60) {
    ASSERT_NO_FATAL_FAILURE(watch.Step());
    ++steps;
  }
  EXPECT_LE(steps, 8) << "32 in turn, 4 pieces a step";
}

TEST(SchedulerFairnessTest, ALongPromptAdvancesUnderAStreamOfShortOnes) {
  Watch watch(kPlenty);
  Sequence* const novel = watch.Add(64 * 100, 2);
  const int64_t id = novel->id;
  int64_t steps = 0;
  while (watch.Has(id)) {
    while (watch.size() < 48) watch.Add(50, 1);  // each gone after one piece
    ASSERT_NO_FATAL_FAILURE(watch.Step());
    ++steps;
  }
  EXPECT_LE(steps, 100 * 8 + 1) << "a piece within 8 steps at the worst";
}

TEST(SchedulerFairnessTest, EvenWithTheSmallestBudgetEverybodyMovesOn) {
  Watch watch({.max_batch_tokens = 95, .max_sequences = 32, .num_slots = 32, .num_pages = 100000});
  for (int i = 0; i < 31; ++i) watch.Add(3, 300);
  for (int i = 0; i < 40; ++i) ASSERT_NO_FATAL_FAILURE(watch.Step());
  Sequence* const novel = watch.Add(640, 1);
  const int64_t id = novel->id;
  int64_t steps = 0;
  while (watch.Has(id)) {
    ASSERT_NO_FATAL_FAILURE(watch.Step());
    ++steps;
  }
  EXPECT_EQ(steps, 10) << "31 decoders leave one piece a step";
}

TEST(SchedulerFairnessTest, BoundsHoldUnderRandomLoad) {
  for (uint32_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto sequences = static_cast<int32_t>(1 + random() % 20);
    Watch watch({.max_batch_tokens = sequences + 63 + static_cast<int32_t>(random() % 300),
                 .max_sequences = sequences,
                 .num_slots = sequences,
                 .num_pages = 100000});
    for (int step = 0; step < 400; ++step) {
      while (watch.size() < static_cast<size_t>(2 * sequences) && random() % 4 != 0) {
        const bool is_long = random() % 4 == 0;
        watch.Add(1 + static_cast<int32_t>(random() % (is_long ? 5000 : 150)),
                  1 + static_cast<int32_t>(random() % 60));
      }
      if (watch.size() == 0) continue;
      ASSERT_NO_FATAL_FAILURE(watch.Step());
    }
  }
}

// Pages for little more than one sequence: the oldest never waits, everybody ends, nothing leaks.
TEST(SchedulerFairnessTest, ScarcePagesNeverStopTheOldest) {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto pages = static_cast<int32_t>(3 + random() % 8);
    Scheduler scheduler({.max_batch_tokens = 80 + static_cast<int32_t>(random() % 100),
                         .max_sequences = 8,
                         .num_slots = 8,
                         .num_pages = pages});
    std::map<int64_t, std::unique_ptr<Sequence>> alive;
    for (int64_t id = 1; id <= 30; ++id) {
      const auto tokens =
          static_cast<int32_t>(2 + random() % (64u * static_cast<uint32_t>(pages) - 1));
      const auto prompt = static_cast<int32_t>(1 + random() % static_cast<uint32_t>(tokens - 1));
      alive[id] = std::make_unique<Sequence>(
          id, std::vector<int32_t>(static_cast<size_t>(prompt), 3), tokens - prompt);
      scheduler.Add(alive[id].get());
    }
    int32_t oldest_without = 0;
    int64_t oldest_id = 0;
    while (!alive.empty()) {
      const Sequence& oldest = *alive.begin()->second;
      if (oldest.id != oldest_id) oldest_without = 0;
      oldest_id = oldest.id;
      const Scheduler::Plan& plan = scheduler.NextStep();
      ASSERT_FALSE(plan.step.segments.empty());
      oldest_without = oldest.planned_rows > 0 ? 0 : oldest_without + 1;
      ASSERT_LT(oldest_without, 8) << "eight in turn, one piece a step at the worst";
      const std::vector<Sequence*> sequences = plan.sequences;
      scheduler.Commit();
      for (Sequence* sequence : sequences) {
        if (!sequence->awaits_token()) continue;
        sequence->tokens.push_back(1);
        if (sequence->num_tokens() < sequence->max_tokens) continue;
        scheduler.Remove(sequence);
        alive.erase(sequence->id);
      }
    }
    EXPECT_EQ(scheduler.num_free_pages(), pages);
    EXPECT_EQ(scheduler.num_used_slots(), 0);
  }
}

}  // namespace
}  // namespace banyan::trunk
