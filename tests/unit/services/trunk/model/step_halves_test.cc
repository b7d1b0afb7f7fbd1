#include "services/trunk/model/step_halves.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <vector>

namespace banyan::trunk {
namespace {

// Segments of so many rows, the sequence of each at a position of its own; pages numbered through.
struct TestPlan {
  explicit TestPlan(const std::vector<int32_t>& rows_of_each) {
    for (const int32_t rows : rows_of_each) {
      const auto index = static_cast<int32_t>(segments.size());
      const int32_t position = 64 * index;
      segments.push_back({.first_row = static_cast<int32_t>(tokens.size()),
                          .num_rows = rows,
                          .first_position = position,
                          .slot = index,
                          .first_page = static_cast<int32_t>(pages.size()),
                          .chunked = rows > 1,
                          .prompt_tokens = rows > 1 && index % 3 != 1 ? 600 + index : 0});
      for (int32_t r = 0; r < rows; ++r) {
        tokens.push_back(static_cast<int32_t>(tokens.size()));
        positions.push_back(position + r);
        cos.insert(cos.end(), {static_cast<float>(tokens.back()), 0.5f});
        sin.insert(sin.end(), {-static_cast<float>(tokens.back()), 0.5f});
      }
      for (int32_t p = 0; 64 * p < position + rows; ++p) {
        pages.push_back(static_cast<int32_t>(100 * index + p));
      }
    }
    plan = {.num_rows = static_cast<int32_t>(tokens.size()),
            .segments = segments,
            .token_ids = tokens,
            .positions = positions,
            .page_ids = pages,
            .rope_cos = cos,
            .rope_sin = sin};
  }
  std::vector<PlanSegment> segments;
  std::vector<int32_t> tokens, positions, pages;
  std::vector<float> cos, sin;
  StepPlan plan;
};

// The halves are the plan's rows, each with its sequence's slot, position and pages.
void ExpectWhole(const StepPlan& plan, const StepHalves& halves) {
  int32_t row = 0;
  size_t segment = 0;
  for (int which : {0, 1}) {
    const StepPlan& half = halves.half(which);
    ASSERT_GT(half.num_rows, 0);
    ASSERT_EQ(half.token_ids.size(), static_cast<size_t>(half.num_rows));
    int32_t covered = 0;
    for (const PlanSegment& s : half.segments) {
      ASSERT_EQ(s.first_row, covered);
      covered += s.num_rows;
      while (plan.segments[segment].slot != s.slot) ++segment;
      const PlanSegment& whole = plan.segments[segment];
      EXPECT_EQ(s.chunked, whole.chunked);
      EXPECT_EQ(s.prompt_tokens, whole.prompt_tokens);
      EXPECT_EQ((s.first_position - whole.first_position) % 64, 0);
      for (int32_t r = 0; r < s.num_rows; ++r, ++row) {
        const auto in_half = static_cast<size_t>(s.first_row + r);
        const auto in_plan = static_cast<size_t>(row);
        EXPECT_EQ(half.token_ids[in_half], plan.token_ids[in_plan]);
        EXPECT_EQ(half.positions[in_half], plan.positions[in_plan]);
        EXPECT_EQ(half.positions[in_half], s.first_position + r);
        EXPECT_EQ(half.rope_cos[2 * in_half], plan.rope_cos[2 * in_plan]);
        EXPECT_EQ(half.rope_sin[2 * in_half], plan.rope_sin[2 * in_plan]);
      }
      for (int32_t p = 0; 64 * p < s.first_position + s.num_rows; ++p) {
        EXPECT_EQ(half.page_ids[static_cast<size_t>(s.first_page + p)],
                  plan.page_ids[static_cast<size_t>(whole.first_page + p)]);
      }
    }
    EXPECT_EQ(covered, half.num_rows);
  }
  EXPECT_EQ(row, plan.num_rows);
}

TEST(StepHalvesTest, CutsNearTheMiddle) {
  struct Case {
    std::vector<int32_t> rows;
    int32_t first;
  };
  for (const Case& c :
       {Case{{128}, 64}, Case{{65}, 64}, Case{{4096}, 2048}, Case{{200}, 128},
        Case{{192}, 64},  // the first of two as near
        Case{{1, 1}, 1}, Case{{100, 30}, 64}, Case{{1, 1, 1, 300}, 131}, Case{{300, 1, 1}, 128},
        Case{{40, 50, 41}, 40 + 50}, Case{{2048, 2048}, 2048}, Case{{31, 4096, 7}, 31 + 2048}}) {
    const TestPlan test(c.rows);
    StepHalves halves(8);
    for (int repeat = 0; repeat < 2; ++repeat) {
      ASSERT_TRUE(halves.Cut(test.plan));
      EXPECT_EQ(halves.half(0).num_rows, c.first) << test.plan.num_rows;
      ExpectWhole(test.plan, halves);
    }
  }
}

TEST(StepHalvesTest, LeavesWhatHasNoPlaceToCut) {
  for (const int32_t rows : {1, 2, 63, 64}) {
    const TestPlan test({rows});
    EXPECT_FALSE(StepHalves(1).Cut(test.plan)) << rows;
  }
}

// The calls of the experts are sized by it (MaxCallRows).
TEST(StepHalvesTest, HalvesAreAtMostHalfTheGridFromTheMiddle) {
  StepHalves halves(40);
  for (int32_t seed = 0; seed < 300; ++seed) {
    std::vector<int32_t> rows;
    for (int32_t i = 0; i <= seed % 37; ++i) rows.push_back(1 + seed * (i + 7) * 131 % 300);
    const TestPlan test(rows);
    if (test.plan.num_rows <= 64 && rows.size() == 1) continue;
    ASSERT_TRUE(halves.Cut(test.plan));
    EXPECT_LE(std::abs(2 * halves.half(0).num_rows - test.plan.num_rows), 64);
    ExpectWhole(test.plan, halves);
  }
}

}  // namespace
}  // namespace banyan::trunk
