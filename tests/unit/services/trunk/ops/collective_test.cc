// A group of threads: same sums everywhere, in the order of ranks; a rank that fails ends it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "services/trunk/ops/collective/in_process.h"

namespace banyan::trunk {
namespace {

template <typename Body>
void OnEachRank(int32_t size, const Body& body) {
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < size; ++rank) threads.emplace_back([&, rank] { body(rank); });
  for (std::thread& thread : threads) thread.join();
}

class InProcessGroupTest : public ::testing::TestWithParam<int32_t> {};

TEST_P(InProcessGroupTest, AddsInTheOrderOfRanks) {
  const int32_t size = GetParam();
  const InProcessGroup group(size);
  ASSERT_EQ(group.size(), size);
  std::mt19937_64 random(7);
  std::uniform_real_distribution<float> exponent(-20, 20);
  for (const size_t count : {size_t{1}, size_t{3}, size_t{64}, size_t{1001}, size_t{0}}) {
    std::vector<std::vector<float>> arrays(static_cast<size_t>(size));
    for (auto& array : arrays) {
      for (size_t i = 0; i < count; ++i) array.push_back(std::exp2(exponent(random)));
    }
    std::vector<float> expected = arrays[0];
    for (size_t r = 1; r < arrays.size(); ++r) {
      for (size_t i = 0; i < count; ++i) expected[i] += arrays[r][i];
    }
    OnEachRank(size, [&](int32_t rank) {
      std::vector<float>& own = arrays[static_cast<size_t>(rank)];
      Collective* const collective = group.rank(rank);
      EXPECT_EQ(collective->rank(), rank);
      EXPECT_TRUE(
          collective->AllReduce(own.data(), static_cast<int64_t>(count), nullptr, nullptr).ok());
    });
    for (const auto& array : arrays) EXPECT_EQ(array, expected);
  }
}

// Ranks that come late, and go on to the next operation while others still leave the last one.
TEST_P(InProcessGroupTest, ManyOperationsInTurn) {
  const int32_t size = GetParam();
  const InProcessGroup group(size);
  OnEachRank(size, [&](int32_t rank) {
    std::vector<float> own(17);
    for (int turn = 0; turn < 500; ++turn) {
      if ((turn + rank) % 7 == 0) std::this_thread::yield();
      own.assign(own.size(), static_cast<float>(turn * (rank + 1)));
      ASSERT_TRUE(group.rank(rank)
                      ->AllReduce(own.data(), static_cast<int64_t>(own.size()), nullptr, nullptr)
                      .ok());
      const auto expected = static_cast<float>(turn * (size * (size + 1) / 2));
      for (const float value : own) ASSERT_EQ(value, expected);
    }
  });
}

TEST_P(InProcessGroupTest, AFailedRankEndsEverybodysWait) {
  const int32_t size = GetParam();
  if (size == 1) return;  // nobody waits
  const InProcessGroup group(size);
  const absl::Status why = absl::InternalError("GPU 1 fell off the bus");
  OnEachRank(size, [&](int32_t rank) {
    Collective* const collective = group.rank(rank);
    EXPECT_TRUE(collective->status().ok());
    float value = 1;
    ASSERT_TRUE(collective->AllReduce(&value, 1, nullptr, nullptr).ok());
    EXPECT_EQ(value, static_cast<float>(size));
    if (rank == 1) {
      collective->Abort(why);
      collective->Abort(absl::InternalError("later"));  // the first one counts
    } else {
      EXPECT_EQ(collective->AllReduce(&value, 1, nullptr, nullptr), why);
    }
    EXPECT_EQ(collective->status(), why);
    EXPECT_EQ(collective->AllReduce(&value, 1, nullptr, nullptr), why);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, InProcessGroupTest, ::testing::Values(1, 2, 3, 4, 8));

}  // namespace
}  // namespace banyan::trunk
