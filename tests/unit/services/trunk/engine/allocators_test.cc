#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "services/trunk/state/page_allocator.h"
#include "services/trunk/state/slot_allocator.h"

namespace banyan::trunk {
namespace {

TEST(PageAllocatorTest, TakesAllOrNothing) {
  PageAllocator allocator(5);
  std::vector<int32_t> pages;
  EXPECT_TRUE(allocator.Allocate(3, &pages));
  EXPECT_FALSE(allocator.Allocate(3, &pages));
  EXPECT_EQ(pages.size(), 3u);
  EXPECT_EQ(allocator.num_free(), 2);
  EXPECT_TRUE(allocator.Allocate(0, &pages));
  EXPECT_TRUE(allocator.Allocate(2, &pages));
  EXPECT_EQ(std::set<int32_t>(pages.begin(), pages.end()), (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(allocator.num_free(), 0);
  EXPECT_EQ(allocator.num_used(), 5);
  allocator.Free(&pages);
  EXPECT_TRUE(pages.empty());
  EXPECT_EQ(allocator.num_free(), 5);
}

TEST(PageAllocatorTest, EmptyPoolGivesNothing) {
  PageAllocator allocator(0);
  std::vector<int32_t> pages;
  EXPECT_FALSE(allocator.Allocate(1, &pages));
  EXPECT_TRUE(allocator.Allocate(0, &pages));
}

TEST(PageAllocatorTest, NobodySharesUnderRandomUse) {
  constexpr uint32_t kSeed = 20260101;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  constexpr int32_t kPages = 97;
  PageAllocator allocator(kPages);
  std::vector<std::vector<int32_t>> owners(11);
  for (int round = 0; round < 20000; ++round) {
    std::vector<int32_t>& pages = owners[random() % owners.size()];
    if (random() % 3 == 0) {
      allocator.Free(&pages);
    } else {
      const auto count = static_cast<int32_t>(random() % 9);
      const int32_t free = allocator.num_free();
      ASSERT_EQ(allocator.Allocate(count, &pages), count <= free);
    }
    std::set<int32_t> distinct;
    size_t total = 0;
    for (const auto& owned : owners) {
      distinct.insert(owned.begin(), owned.end());
      total += owned.size();
    }
    ASSERT_EQ(distinct.size(), total);
    ASSERT_EQ(static_cast<int32_t>(total), allocator.num_used());
    if (!distinct.empty()) {
      ASSERT_GE(*distinct.begin(), 0);
      ASSERT_LT(*distinct.rbegin(), kPages);
    }
  }
}

TEST(PageAllocatorDeathTest, FreeingTwiceIsOurBug) {
  PageAllocator allocator(2);
  std::vector<int32_t> pages;
  ASSERT_TRUE(allocator.Allocate(1, &pages));
  std::vector<int32_t> copy = pages;
  allocator.Free(&pages);
  EXPECT_DEATH(allocator.Free(&copy), "CHECK failed");
  std::vector<int32_t> foreign = {2};
  EXPECT_DEATH(allocator.Free(&foreign), "CHECK failed");
}

TEST(SlotAllocatorTest, EverySlotOnceThenNone) {
  SlotAllocator slots(3);
  std::set<int32_t> taken;
  for (int i = 0; i < 3; ++i) taken.insert(slots.Allocate().value());
  EXPECT_EQ(taken, (std::set<int32_t>{0, 1, 2}));
  EXPECT_FALSE(slots.Allocate().has_value());
  slots.Free(1);
  EXPECT_EQ(slots.num_free(), 1);
  EXPECT_EQ(slots.num_used(), 2);
  EXPECT_EQ(slots.Allocate(), 1);
  EXPECT_EQ(slots.num_slots(), 3);
}

}  // namespace
}  // namespace banyan::trunk
