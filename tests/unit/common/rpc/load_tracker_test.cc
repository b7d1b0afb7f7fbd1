#include "common/rpc/load_tracker.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"

namespace banyan {
namespace {

using common::v1::LoadProgress;

TEST(LoadTrackerTest, ChangesCountOnceAndPhasesResetBytes) {
  LoadTracker tracker;
  const uint64_t first = tracker.version();
  tracker.SetPhase(LoadProgress::READ, "weights");
  tracker.SetBytes(10, 100);
  EXPECT_EQ(tracker.version(), first + 2);
  tracker.SetPhase(LoadProgress::READ, "weights");
  tracker.SetBytes(10, 100);
  EXPECT_EQ(tracker.version(), first + 2);
  EXPECT_EQ(tracker.Get().bytes_done(), 10u);
  tracker.SetPhase(LoadProgress::READ, "more weights");
  EXPECT_EQ(tracker.Get().bytes_done(), 10u);
  tracker.SetPhase(LoadProgress::WAIT, "shard 1");
  EXPECT_EQ(tracker.Get().bytes_done(), 0u);
  EXPECT_EQ(tracker.Get().bytes_total(), 0u);
  EXPECT_EQ(tracker.Get().detail(), "shard 1");
}

TEST(LoadTrackerTest, ElapsedStandsStillAtTheEnd) {
  LoadTracker tracker;
  tracker.SetPhase(LoadProgress::READY);
  const double at_end = tracker.Get().elapsed_seconds();
  EXPECT_GE(at_end, 0);
  EXPECT_EQ(tracker.Get().elapsed_seconds(), at_end);
  EXPECT_TRUE(LoadTracker::IsLast(LoadProgress::FAILED));
  EXPECT_FALSE(LoadTracker::IsLast(LoadProgress::WAIT));
}

TEST(LoadTrackerTest, AwaitChangeReturnsAtTheChangeOrTheDeadline) {
  LoadTracker tracker;
  const uint64_t seen = tracker.version();
  EXPECT_EQ(tracker.AwaitChange(seen, absl::Now() - absl::Seconds(1)), seen);
  std::thread writer([&tracker] { tracker.SetPhase(LoadProgress::PLAN); });
  EXPECT_EQ(tracker.AwaitChange(seen, absl::InfiniteFuture()), seen + 1);
  writer.join();
}

}  // namespace
}  // namespace banyan
