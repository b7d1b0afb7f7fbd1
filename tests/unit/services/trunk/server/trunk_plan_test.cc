#include "services/trunk/server/trunk_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "common/base/check.h"
#include "services/trunk/ops/cpu/cpu_backend.h"

namespace banyan::trunk {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelConfig Demo() {
  auto config = LoadModelConfig(BANYAN_SOURCE_DIR "/deploy/models/demo");
  CHECK(config.ok());
  return *std::move(config);
}

const Backend& Cpu() {
  static WorkerPool* const pool = new WorkerPool({});
  static const Backend* const backend = [] {
    auto made = CreateCpuBackend({}, pool);
    CHECK(made.ok());
    return made->release();
  }();
  return *backend;
}

// Bytes of all but the weights and KV pages, and of one page.
struct Sizes {
  uint64_t fixed;
  uint64_t page;
};
Sizes DemoSizes() {
  DecoderOptions options;
  options.max_context_tokens = 8192;
  options.num_pages = 1;
  const DecoderMemory memory = Decoder::Plan(Demo(), options, Cpu());
  return {memory.recurrent_state_bytes + memory.activation_bytes + memory.scratch_bytes,
          memory.kv_cache_bytes};
}

TrunkPlanInput Input() {
  TrunkPlanInput input;
  input.weight_bytes = 10 << 20;
  input.max_sequences = 32;
  input.max_batch_tokens = 512;
  input.available_bytes = uint64_t{16} << 30;
  return input;
}

TEST(TrunkPlanTest, AutomaticTakesTheModelsContextAndPagesForTypicalAnswers) {
  const auto plan = PlanTrunk(Demo(), Input(), Cpu());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->decoder.max_context_tokens, 8192);
  EXPECT_EQ(plan->decoder.num_pages, 32 * 4096 / 64);
  EXPECT_EQ(plan->decoder.num_slots, 32);
  EXPECT_THAT(plan->memory.Table(), AllOf(HasSubstr("KV pages"), HasSubstr("2048 pages"),
                                          HasSubstr("3/4 of 16.0 GiB available")));
}

TEST(TrunkPlanTest, AtLeastOneWholeContext) {
  TrunkPlanInput input = Input();
  input.max_sequences = 1;
  const auto plan = PlanTrunk(Demo(), input, Cpu());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->decoder.num_pages, 8192 / 64);
}

TEST(TrunkPlanTest, ASmallBudgetShortensTheContext) {
  TrunkPlanInput input = Input();
  input.budget_bytes = input.weight_bytes + DemoSizes().fixed + 20 * DemoSizes().page + 100;
  const auto plan = PlanTrunk(Demo(), input, Cpu());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->decoder.num_pages, 20);
  EXPECT_EQ(plan->decoder.max_context_tokens, 20 * 64);
  EXPECT_LE(plan->memory.total_bytes(), input.budget_bytes);
}

TEST(TrunkPlanTest, RefusesWithNumbers) {
  TrunkPlanInput input = Input();
  input.budget_bytes = 20 << 20;
  const auto plan = PlanTrunk(Demo(), input, Cpu());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(plan.status().message()),
              AllOf(HasSubstr("1024 tokens"), HasSubstr("20.0 MiB granted (--host_budget)"),
                    HasSubstr("weights"), HasSubstr("recurrent state")));

  input = Input();
  input.max_context_tokens = 8193;
  EXPECT_THAT(std::string(PlanTrunk(Demo(), input, Cpu()).status().message()),
              AllOf(HasSubstr("--max_context_tokens 8193"), HasSubstr("8192 positions")));

  input.max_context_tokens = 8192;
  input.budget_bytes = input.weight_bytes + DemoSizes().fixed + 127 * DemoSizes().page;
  EXPECT_THAT(std::string(PlanTrunk(Demo(), input, Cpu()).status().message()),
              HasSubstr("a context of 8192 tokens does not fit"));
}

}  // namespace
}  // namespace banyan::trunk
