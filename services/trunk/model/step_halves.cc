#include "services/trunk/model/step_halves.h"

#include <cstdlib>
#include <span>

#include "common/base/check.h"
#include "common/plan/decoder_memory.h"

namespace banyan::trunk {
namespace {

static_assert(kHalfGridRows % kOpsChunkTokens == 0);  // chunks stay whole

// Rows of the first half; 0: the plan cannot be cut.
int32_t FirstRows(const StepPlan& plan) {
  int32_t best = 0;
  const auto consider = [&](int32_t row) {
    const auto from_middle = [&plan](int32_t r) { return std::abs(2 * r - plan.num_rows); };
    if (row <= 0 || row >= plan.num_rows) return;
    if (best == 0 || from_middle(row) < from_middle(best)) best = row;
  };
  for (const PlanSegment& s : plan.segments) {
    for (int32_t r = 0; r < s.num_rows; r += kHalfGridRows) consider(s.first_row + r);
  }
  return best;
}

std::span<const float> AnglesOf(std::span<const float> all, const StepPlan& plan, int32_t first,
                                int32_t count) {
  const size_t width = all.size() / static_cast<size_t>(plan.num_rows);
  return all.subspan(static_cast<size_t>(first) * width, static_cast<size_t>(count) * width);
}

// Rows [first, first + count) of the plan, whose segments are `segments`.
StepPlan Rows(const StepPlan& plan, std::span<const PlanSegment> segments, int32_t first_page,
              int32_t first, int32_t count) {
  const auto begin = static_cast<size_t>(first);
  const auto rows = static_cast<size_t>(count);
  return {.num_rows = count,
          .segments = segments,
          .token_ids = plan.token_ids.subspan(begin, rows),
          .positions = plan.positions.subspan(begin, rows),
          .page_ids = plan.page_ids.subspan(static_cast<size_t>(first_page)),
          .rope_cos = AnglesOf(plan.rope_cos, plan, first, count),
          .rope_sin = AnglesOf(plan.rope_sin, plan, first, count)};
}

}  // namespace

StepHalves::StepHalves(int32_t max_segments) {
  segments_.reserve(static_cast<size_t>(max_segments) + 1);
}

bool StepHalves::Cut(const StepPlan& plan) {
  const int32_t first_rows = FirstRows(plan);
  if (first_rows == 0) return false;
  segments_.clear();
  size_t first_segments = 0;
  int32_t second_page = 0;
  for (const PlanSegment& s : plan.segments) {
    const int32_t before = first_rows - s.first_row;  // rows of it in the first half
    if (before > 0) {
      PlanSegment& first = segments_.emplace_back(s);
      if (before < s.num_rows) first.num_rows = before;
      ++first_segments;
    }
    if (before < s.num_rows) {
      if (segments_.size() == first_segments) second_page = s.first_page;
      PlanSegment& second = segments_.emplace_back(s);
      if (before > 0) {
        second.num_rows -= before;
        second.first_position += before;
      }
      second.first_row = before > 0 ? 0 : -before;
      second.first_page -= second_page;
    }
  }
  CHECK(first_segments > 0 && first_segments < segments_.size());
  const std::span<const PlanSegment> all(segments_);
  halves_[0] = Rows(plan, all.first(first_segments), 0, 0, first_rows);
  halves_[1] =
      Rows(plan, all.subspan(first_segments), second_page, first_rows, plan.num_rows - first_rows);
  return true;
}

}  // namespace banyan::trunk
