#include "services/trunk/server/prompt_workers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "absl/synchronization/notification.h"

namespace banyan::trunk {
namespace {

TEST(PromptWorkersTest, ShortPromptsDoNotWaitForLongOnes) {
  PromptWorkers workers(8);
  absl::Notification long_begun, release, short_done;
  ASSERT_TRUE(workers.Submit(PromptWorkers::kLongPromptBytes + 1, [&] {
    long_begun.Notify();
    release.WaitForNotification();
  }));
  long_begun.WaitForNotification();
  ASSERT_TRUE(workers.Submit(10, [&] { short_done.Notify(); }));
  short_done.WaitForNotification();
  release.Notify();
}

TEST(PromptWorkersTest, LongPromptsDoNotWaitForShortOnesThatCameFirst) {
  std::string order;
  absl::Notification begun[2], release[2], done;
  PromptWorkers workers(8);
  ASSERT_TRUE(workers.Submit(PromptWorkers::kLongPromptBytes + 1, [&] {
    begun[0].Notify();
    release[0].WaitForNotification();
  }));
  begun[0].WaitForNotification();
  ASSERT_TRUE(workers.Submit(1, [&] {
    begun[1].Notify();
    release[1].WaitForNotification();
  }));
  begun[1].WaitForNotification();
  // Both threads are held; only the one that serves long prompts is let go.
  ASSERT_TRUE(workers.Submit(1, [&] {
    order += "short";
    done.Notify();
  }));
  ASSERT_TRUE(workers.Submit(PromptWorkers::kLongPromptBytes + 1, [&] { order += "long "; }));
  release[0].Notify();
  done.WaitForNotification();
  EXPECT_EQ(order, "long short");
  release[1].Notify();
}

TEST(PromptWorkersTest, TheQueueIsBounded) {
  std::atomic<int> run = 0;
  {
    PromptWorkers workers(3);
    absl::Notification begun[2], release;
    for (auto& b : begun) {
      ASSERT_TRUE(workers.Submit(1, [&] {
        b.Notify();
        release.WaitForNotification();
      }));
      b.WaitForNotification();
    }
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(workers.Submit(1, [&] { ++run; }));
    EXPECT_EQ(workers.queued(), 3);
    EXPECT_FALSE(workers.Submit(1, [&] { ++run; }));
    release.Notify();
    absl::Notification done;
    while (workers.queued() > 0) {
    }
    ASSERT_TRUE(workers.Submit(1, [&] { done.Notify(); }));
    done.WaitForNotification();
  }
  EXPECT_EQ(run, 3);
}

}  // namespace
}  // namespace banyan::trunk
