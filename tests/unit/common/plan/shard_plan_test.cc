#include "common/plan/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"

namespace banyan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const OpenedModel& Demo() {
  static const OpenedModel* const model = [] {
    auto opened = OpenModel(BANYAN_SOURCE_DIR "/deploy/models/demo", LoadFormat::kAuto);
    CHECK(opened.ok());
    return new OpenedModel(*std::move(opened));
  }();
  return *model;
}

const CheckpointSummary& Summary() {
  static const CheckpointSummary* const summary = [] {
    auto made = CheckComplete(*Demo().checkpoint, Demo().config);
    CHECK(made.ok());
    return new CheckpointSummary(*std::move(made));
  }();
  return *summary;
}

ShardPlanInput Input() {
  ShardPlanInput input;
  input.summary = &Summary();
  input.checkpoint = Demo().checkpoint.get();
  input.config = &Demo().config;
  input.total_bytes = uint64_t{8} << 30;
  input.available_bytes = uint64_t{4} << 30;
  return input;
}

TEST(ShardPlanTest, ShardsAddUpToThePool) {
  const auto summary = CheckComplete(*Demo().checkpoint, Demo().config);
  ASSERT_TRUE(summary.ok());
  for (const ShardSplit split : {ShardSplit::kWidth, ShardSplit::kExperts}) {
    for (const int32_t shards : {1, 2, 3, 5}) {
      uint64_t pool = 0;
      for (int32_t i = 0; i < shards; ++i) {
        const auto part =
            ShardPoolOf(*Demo().checkpoint, Demo().config, Summary(), {i, shards, split}, "auto");
        ASSERT_TRUE(part.ok()) << part.status();
        EXPECT_EQ(part->format, "bf16");
        EXPECT_FALSE(part->packed);
        pool += part->pool_bytes;
      }
      EXPECT_EQ(pool, static_cast<uint64_t>(summary->expert_bytes)) << shards;
    }
  }
}

TEST(ShardPlanTest, RefusesToTheByteWithWhatWouldWork) {
  ShardPlanInput input = Input();
  const auto plan = PlanShard(input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  input.budget_bytes = plan->memory.total_bytes();
  EXPECT_TRUE(PlanShard(input).ok());
  --input.budget_bytes;
  std::vector<PlanChange> changes;
  const auto refused = PlanShard(input, &changes);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(refused.status().message()),
      AllOf(HasSubstr("any one of these would work: --host_budget "),
            HasSubstr("--pool_format int8"), HasSubstr("--shard 0/2"), HasSubstr("expert pool")));
  ASSERT_EQ(changes.size(), 3u);
  EXPECT_EQ(changes[0].value, std::to_string(plan->memory.total_bytes()));
}

// Random budgets, formats, shards and machines: a plan within what there is, or changes that work.
TEST(ShardPlanTest, EveryRefusalNamesChangesThatWork) {
  std::mt19937_64 random(11);
  int held = 0;
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    ShardPlanInput input = Input();
    const char* const formats[] = {"auto", "bf16", "int8", "nf4", "int4"};
    input.pool_format = formats[random() % 5];
    input.shard.num_shards = 1 + static_cast<int32_t>(random() % 2);
    // The demo's width of 64 is one group of nf4.
    const bool by_width = random() % 2 == 0 && input.pool_format != "nf4";
    input.shard.split = by_width ? ShardSplit::kWidth : ShardSplit::kExperts;
    input.memory = static_cast<PoolMemoryMode>(random() % 3);
    input.weights_generated = random() % 2 == 0;
    input.total_bytes = (uint64_t{138} << 20) + random() % (24 << 20);
    input.available_bytes = input.total_bytes - random() % (8 << 20);
    if (random() % 2 == 0) input.budget_bytes = (uint64_t{136} << 20) + random() % (24 << 20);
    SCOPED_TRACE(fmt::format("combination {}: budget {}, total {}, available {}, {}, {} shards", i,
                             input.budget_bytes, input.total_bytes, input.available_bytes,
                             input.pool_format, input.shard.num_shards));
    std::vector<PlanChange> changes;
    const auto plan = PlanShard(input, &changes);
    if (plan.ok()) {
      ++held;
      EXPECT_LE(plan->memory.total_bytes(), input.total_bytes);
      if (input.budget_bytes > 0) {
        EXPECT_LE(plan->memory.total_bytes(), input.budget_bytes);
      }
      continue;
    }
    ++refused;
    ASSERT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted) << plan.status();
    for (const PlanChange& change : changes) {
      ShardPlanInput changed = input;
      if (change.flag == "--host_budget") {
        changed.budget_bytes = std::stoull(change.value);
      } else if (change.flag == "--pool_format") {
        changed.pool_format = change.value;
      } else {
        const auto shard = ParseShard(change.value, input.shard.split);
        ASSERT_TRUE(shard.ok()) << change.flag << " " << change.value;
        changed.shard = *shard;
      }
      EXPECT_TRUE(PlanShard(changed).ok()) << change.flag << " " << change.value;
    }
  }
  EXPECT_GT(held, 30);
  EXPECT_GT(refused, 30);
}

}  // namespace
}  // namespace banyan
