#include "common/base/drain_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"

namespace banyan {
namespace {

TEST(DrainGate, AdmitsUntilClosed) {
  DrainGate gate;
  EXPECT_FALSE(gate.closed());
  EXPECT_TRUE(gate.TryEnter().has_value());
  gate.Close();
  EXPECT_TRUE(gate.closed());
  EXPECT_FALSE(gate.TryEnter().has_value());
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfinitePast()));
}

TEST(DrainGate, EmptyOnlyWhenEveryPassIsGone) {
  DrainGate gate;
  auto first = gate.TryEnter();
  auto second = gate.TryEnter();
  gate.Close();
  EXPECT_FALSE(gate.WaitUntilEmpty(absl::InfinitePast()));
  first.reset();
  EXPECT_FALSE(gate.WaitUntilEmpty(absl::InfinitePast()));
  second.reset();
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfinitePast()));
}

TEST(DrainGate, MovedPassesLeaveOnce) {
  DrainGate gate;
  DrainGate other;
  {
    DrainGate::Pass pass = *gate.TryEnter();
    const DrainGate::Pass moved = std::move(pass);
    EXPECT_FALSE(gate.WaitUntilEmpty(absl::InfinitePast()));
  }
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfinitePast()));
  {
    DrainGate::Pass a = *gate.TryEnter();
    DrainGate::Pass b = *other.TryEnter();
    a = std::move(b);  // leaves `gate`, keeps `other`
    EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfinitePast()));
    EXPECT_FALSE(other.WaitUntilEmpty(absl::InfinitePast()));
    DrainGate::Pass& self = a;
    a = std::move(self);
    EXPECT_FALSE(other.WaitUntilEmpty(absl::InfinitePast()));
  }
  EXPECT_TRUE(other.WaitUntilEmpty(absl::InfinitePast()));
}

TEST(DrainGate, WaitsForWorkOfOtherThreads) {
  DrainGate gate;
  absl::Notification entered;
  absl::Notification finish;
  std::thread worker([&] {
    const auto pass = gate.TryEnter();
    entered.Notify();
    finish.WaitForNotification();
  });
  entered.WaitForNotification();
  gate.Close();
  EXPECT_FALSE(gate.WaitUntilEmpty(absl::InfinitePast()));
  finish.Notify();
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfiniteFuture()));
  worker.join();
}

TEST(DrainGate, NothingIsInsideAfterAWaitUnderContention) {
  DrainGate gate;
  std::atomic<int> inside{0};
  absl::Notification one_admitted;
  std::vector<std::thread> workers;
  std::atomic<bool> notified{false};
  for (int i = 0; i < 4; ++i) {
    workers.emplace_back([&] {
      while (true) {
        const auto pass = gate.TryEnter();
        if (!pass.has_value()) return;
        inside.fetch_add(1);
        if (!notified.exchange(true)) one_admitted.Notify();
        inside.fetch_sub(1);
      }
    });
  }
  one_admitted.WaitForNotification();
  gate.Close();
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfiniteFuture()));
  EXPECT_EQ(inside.load(), 0);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace
}  // namespace banyan
