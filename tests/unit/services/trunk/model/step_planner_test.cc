#include "services/trunk/model/step_planner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace banyan::trunk {
namespace {

const StepPlanner::Options kOptions = {.max_rows = 200,
                                       .num_slots = 3,
                                       .num_pages = 5000,
                                       .max_position = 262144,
                                       .vocab_size = 10,
                                       .rotary_dim = 64,
                                       .rope_theta = 1e7};

TEST(StepPlannerTest, RowsAndPagesOfEverySegment) {
  StepPlanner planner(kOptions);
  const std::vector<int32_t> tokens = {1, 2, 3, 9};
  const std::vector<int32_t> first_pages = {7};
  const std::vector<int32_t> second_pages = {4, 2, 40, 41};  // more than needed
  const StepSegment segments[] = {
      {.first_row = 0,
       .num_rows = 3,
       .first_position = 0,
       .slot = 2,
       .pages = first_pages,
       .chunked = true,
       .prompt_tokens = 700},
      {.first_row = 3, .num_rows = 1, .first_position = 100, .slot = 0, .pages = second_pages}};
  for (int repeat = 0; repeat < 2; ++repeat) {
    const StepPlan& plan = planner.Build({.token_ids = tokens, .segments = segments});
    EXPECT_EQ(plan.num_rows, 4);
    EXPECT_EQ(std::vector<int32_t>(plan.positions.begin(), plan.positions.end()),
              (std::vector<int32_t>{0, 1, 2, 100}));
    EXPECT_EQ(std::vector<int32_t>(plan.page_ids.begin(), plan.page_ids.end()),
              (std::vector<int32_t>{7, 4, 2}));
    ASSERT_EQ(plan.segments.size(), 2u);
    EXPECT_TRUE(plan.segments[0].chunked);
    EXPECT_EQ(plan.segments[0].prompt_tokens, 700);
    EXPECT_FALSE(plan.segments[1].chunked);
    EXPECT_EQ(plan.segments[1].prompt_tokens, 0);
    EXPECT_EQ(plan.segments[1].first_page, 1);
    EXPECT_EQ(plan.segments[1].slot, 0);
  }
}

TEST(StepPlannerTest, AnglesStayExactAtTheLastPosition) {
  StepPlanner planner(kOptions);
  const std::vector<int32_t> tokens = {0};
  const std::vector<int32_t> pages(4096, 1);
  const StepSegment segments[] = {
      {.first_row = 0, .num_rows = 1, .first_position = 262143, .slot = 0, .pages = pages}};
  const StepPlan& plan = planner.Build({.token_ids = tokens, .segments = segments});
  ASSERT_EQ(plan.rope_cos.size(), 32u);
  for (int i = 0; i < 32; ++i) {
    const long double angle = 262143.0L * std::pow(1e7L, -2.0L * i / 64);
    EXPECT_NEAR(plan.rope_cos[static_cast<size_t>(i)], static_cast<double>(std::cos(angle)), 1e-7);
    EXPECT_NEAR(plan.rope_sin[static_cast<size_t>(i)], static_cast<double>(std::sin(angle)), 1e-7);
  }
}

TEST(StepPlannerDeathTest, AStepAgainstTheContractIsOurBug) {
  const std::vector<int32_t> tokens = {0, 1};
  const std::vector<int32_t> pages = {0};
  const auto build = [&](StepSegment segment, std::vector<int32_t> ids) {
    StepPlanner planner(kOptions);
    segment.pages = pages;
    const StepSegment segments[] = {segment};
    planner.Build({.token_ids = ids, .segments = segments});
  };
  StepSegment good;
  good.num_rows = 2;
  build(good, tokens);
  EXPECT_DEATH(build(good, {0, 10}), "token_id");
  EXPECT_DEATH(build(good, {0}), "num_rows|size");
  StepSegment bad = good;
  bad.slot = 3;
  EXPECT_DEATH(build(bad, tokens), "slot");
  bad = good;
  bad.first_position = 63;  // needs a second page
  EXPECT_DEATH(build(bad, tokens), "num_pages");
  bad = good;
  bad.first_position = 1;
  bad.chunked = true;
  EXPECT_DEATH(build(bad, tokens), "kDeltaNetChunkTokens");
  bad = good;
  bad.prompt_tokens = 1;
  EXPECT_DEATH(build(bad, tokens), "prompt_tokens");
}

}  // namespace
}  // namespace banyan::trunk
