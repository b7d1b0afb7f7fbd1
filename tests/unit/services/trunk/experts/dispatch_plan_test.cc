#include "services/trunk/routing/dispatch_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "common/quant/bf16.h"

namespace banyan::trunk {
namespace {

using testing::ElementsAre;

constexpr uint16_t kNot = kOtherShard;

TEST(DispatchPlanTest, SplitByWidthLendsTheBatchItself) {
  DispatchPlan plan({{0, 8}, {0, 8}}, 8);
  const std::vector<uint16_t> ids = {7, 1, 0, 2};
  const std::vector<float> weights = {0.5f, 0.25f, 1, 2};
  plan.Build(2, 2, ids.data(), weights.data());
  for (int32_t s = 0; s < 2; ++s) {
    EXPECT_TRUE(plan.shard(s).all_rows);
    EXPECT_EQ(plan.shard(s).num_rows, 2);
    EXPECT_EQ(plan.shard(s).expert_ids.data(), ids.data());
    EXPECT_EQ(plan.shard(s).weights.data(), weights.data());
  }
}

TEST(DispatchPlanTest, SplitByExpertsSendsOnlyRowsThatHaveOne) {
  DispatchPlan plan({{0, 3}, {3, 1}, {4, 4}}, 8);
  const std::vector<uint16_t> ids = {7, 1, 5, 6, 0, 2};
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6};
  plan.Build(3, 2, ids.data(), weights.data());
  EXPECT_THAT(plan.shard(0).rows, ElementsAre(0, 2));
  EXPECT_THAT(plan.shard(0).expert_ids, ElementsAre(kNot, 1, 0, 2));
  EXPECT_THAT(plan.shard(0).weights, ElementsAre(0, 2, 5, 6));
  EXPECT_EQ(plan.shard(1).num_rows, 0);
  EXPECT_THAT(plan.shard(2).rows, ElementsAre(0, 1));
  EXPECT_THAT(plan.shard(2).expert_ids, ElementsAre(7, kNot, 5, 6));
  EXPECT_THAT(plan.shard(2).weights, ElementsAre(1, 0, 3, 4));
}

TEST(DispatchPlanTest, EveryPlaceGoesToExactlyOneShard) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 rng(seed);
    const int32_t num_experts = 1 + static_cast<int32_t>(rng() % 40);
    std::vector<ExpertRange> ranges;
    for (int32_t at = 0; at < num_experts;) {
      const int32_t count = std::min(1 + static_cast<int32_t>(rng() % 9), num_experts - at);
      ranges.push_back({at, count});
      at += count;
    }
    const int32_t rows = 1 + static_cast<int32_t>(rng() % 30);
    const int32_t top_k = 1 + static_cast<int32_t>(rng() % std::min(num_experts, 5));
    std::vector<uint16_t> ids;
    std::vector<float> weights;
    for (int32_t i = 0; i < rows * top_k; ++i) {
      ids.push_back(static_cast<uint16_t>(rng() % static_cast<uint32_t>(num_experts)));
      weights.push_back(static_cast<float>(i + 1));
    }
    DispatchPlan plan(ranges, num_experts);
    plan.Build(rows, top_k, ids.data(), weights.data());
    std::vector<int> seen(ids.size(), 0);
    for (int32_t s = 0; s < plan.num_shards(); ++s) {
      const DispatchPlan::ShardRows& shard = plan.shard(s);
      for (int32_t i = 0; i < shard.num_rows; ++i) {
        const int32_t row = shard.all_rows ? i : shard.rows[static_cast<size_t>(i)];
        int here = 0;
        for (int32_t k = 0; k < top_k; ++k) {
          const auto from = static_cast<size_t>(i * top_k + k);
          const auto to = static_cast<size_t>(row * top_k + k);
          if (shard.expert_ids[from] == kNot) {
            EXPECT_EQ(shard.weights[from], 0.0f);
            continue;
          }
          EXPECT_EQ(shard.expert_ids[from], ids[to]) << "seed " << seed;
          EXPECT_EQ(shard.weights[from], weights[to]) << "seed " << seed;
          ++seen[to];
          ++here;
        }
        EXPECT_GT(here, 0) << "seed " << seed;
      }
    }
    EXPECT_THAT(seen, testing::Each(1)) << "seed " << seed;
  }
}

TEST(DispatchPlanTest, RowsGoOutAndSumsComeBackAtAnyAddress) {
  constexpr int32_t kHidden = 7;
  DispatchPlan plan({{0, 4}, {4, 4}}, 8);
  const std::vector<uint16_t> ids = {0, 5, 6, 1};  // one each: rows 0 and 3 to shard 0
  const std::vector<float> weights(4, 1.0f);
  plan.Build(4, 1, ids.data(), weights.data());
  std::vector<float> activations(4 * kHidden);
  for (size_t i = 0; i < activations.size(); ++i) activations[i] = static_cast<float>(i);
  for (size_t shift : {0, 1, 3}) {
    std::vector<float> out(activations.size(), 100.0f);
    for (int32_t s = 0; s < 2; ++s) {
      std::vector<std::byte> gathered(2 * kHidden * 4 + shift), rounded(2 * kHidden * 2 + shift);
      GatherRows(plan.shard(s), {0, plan.shard(s).num_rows},
                 reinterpret_cast<const std::byte*>(activations.data()), kHidden * 4,
                 gathered.data() + shift);
      AddPartialRowsF32(plan.shard(s), {0, plan.shard(s).num_rows}, gathered.data() + shift,
                        kHidden, out.data());
      for (size_t i = 0; i < 2 * kHidden; ++i) {
        float value;
        std::memcpy(&value, gathered.data() + shift + i * 4, 4);
        const BF16 narrow = ToBF16(value);
        std::memcpy(rounded.data() + shift + i * 2, &narrow, 2);
      }
      AddPartialRowsBF16(plan.shard(s), {0, plan.shard(s).num_rows}, rounded.data() + shift,
                         kHidden, out.data());
    }
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], 100.0f + 2 * activations[i]) << i;
  }
}

}  // namespace
}  // namespace banyan::trunk
