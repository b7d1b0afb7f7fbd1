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

TEST(LoadTrackerTest, TellsSpeedTimeLeftAndWhatItCosts) {
  LoadTracker tracker;
  tracker.SetPhase(LoadProgress::READ);
  EXPECT_EQ(tracker.Get().bytes_per_second(), 0);  // unknown
  tracker.SetBytes(1000, 5000);
  // A speed needs some time to be measured over.
  while (tracker.Get().bytes_per_second() == 0) absl::SleepFor(absl::Milliseconds(10));
  const LoadProgress progress = tracker.Get();
  EXPECT_GT(progress.phase_seconds(), 0);
  EXPECT_LE(progress.phase_seconds(), progress.elapsed_seconds());
  EXPECT_NEAR(progress.remaining_seconds() * progress.bytes_per_second(), 4000, 1e-6);
  EXPECT_GT(progress.resident_bytes(), 1u << 20);
  // Of another phase nothing is known yet.
  tracker.SetPhase(LoadProgress::VERIFY);
  EXPECT_EQ(tracker.Get().bytes_per_second(), 0);
  EXPECT_EQ(tracker.Get().remaining_seconds(), 0);
}

TEST(LoadTrackerTest, NamesReplicasInEveryReport) {
  LoadTracker tracker;
  LoadProgress::Replica replica;
  replica.set_shard(1);
  replica.set_address("unix:/e1");
  tracker.SetReplicas({replica});
  tracker.SetPhase(LoadProgress::WAIT);
  ASSERT_EQ(tracker.Get().replicas_size(), 1);
  EXPECT_EQ(tracker.Get().replicas(0).address(), "unix:/e1");
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
