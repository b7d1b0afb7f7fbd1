#include "services/trunk/model/step_planner.h"

#include <algorithm>
#include <cmath>

#include "common/base/check.h"
#include "common/plan/decoder_memory.h"

namespace banyan::trunk {

static_assert(kPageTokens == kOpsPageTokens);
static_assert(kDeltaNetChunkTokens == kOpsChunkTokens);
static_assert(sizeof(PlanSegment) == 28);  // as StepTableBytes counts it

namespace {

StepTableOptions TablesOf(const StepPlanner::Options& o) {
  return {.max_rows = o.max_rows,
          .num_slots = o.num_slots,
          .max_position = o.max_position,
          .rotary_dim = o.rotary_dim};
}

}  // namespace

StepPlanner::StepPlanner(const Options& options) : options_(options) {
  const int32_t half = options.rotary_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    inv_freq_.push_back(std::pow(options.rope_theta, -2.0 * i / options.rotary_dim));
  }
  const auto rows = static_cast<size_t>(options.max_rows);
  segments_.reserve(static_cast<size_t>(std::min(options.max_rows, options.num_slots)));
  token_ids_.reserve(rows);
  positions_.reserve(rows);
  page_ids_.reserve(static_cast<size_t>(MaxStepPageIds(TablesOf(options))));
  rope_cos_.reserve(rows * static_cast<size_t>(half));
  rope_sin_.reserve(rows * static_cast<size_t>(half));
  slot_rows_.resize(static_cast<size_t>(options.num_slots));
}

const StepPlan& StepPlanner::Build(const Step& step) {
  const auto num_rows = static_cast<int32_t>(step.token_ids.size());
  CHECK(num_rows <= options_.max_rows);
  segments_.clear();
  token_ids_.clear();
  positions_.clear();
  page_ids_.clear();
  rope_cos_.clear();
  rope_sin_.clear();
  std::fill(slot_rows_.begin(), slot_rows_.end(), 0);
  for (const StepSegment& segment : step.segments) {
    AddSegment(segment);
    for (int32_t r = 0; r < segment.num_rows; ++r) {
      AddRow(step.token_ids[static_cast<size_t>(segment.first_row + r)],
             segment.first_position + r);
    }
  }
  CHECK(static_cast<int32_t>(token_ids_.size()) == num_rows);
  plan_ = {.num_rows = num_rows,
           .segments = segments_,
           .token_ids = token_ids_,
           .positions = positions_,
           .page_ids = page_ids_,
           .rope_cos = rope_cos_,
           .rope_sin = rope_sin_};
  return plan_;
}

void StepPlanner::AddSegment(const StepSegment& s) {
  CHECK(s.first_row == static_cast<int32_t>(token_ids_.size()));
  CHECK(s.num_rows > 0 && s.num_rows <= options_.max_rows - s.first_row);
  CHECK(s.first_position >= 0 && s.first_position <= options_.max_position - s.num_rows);
  CHECK(s.slot >= 0 && s.slot < options_.num_slots);
  CHECK(slot_rows_[static_cast<size_t>(s.slot)] == 0);
  CHECK(!s.chunked || s.first_position % kDeltaNetChunkTokens == 0);
  CHECK(s.chunked || s.prompt_tokens == 0);
  slot_rows_[static_cast<size_t>(s.slot)] = s.num_rows;
  const int32_t num_pages = (s.first_position + s.num_rows - 1) / kPageTokens + 1;
  CHECK(num_pages <= static_cast<int32_t>(s.pages.size()));
  segments_.push_back({.first_row = s.first_row,
                       .num_rows = s.num_rows,
                       .first_position = s.first_position,
                       .slot = s.slot,
                       .first_page = static_cast<int32_t>(page_ids_.size()),
                       .chunked = s.chunked,
                       .prompt_tokens = s.prompt_tokens});
  for (int32_t page : s.pages.first(static_cast<size_t>(num_pages))) {
    CHECK(page >= 0 && page < options_.num_pages);
    page_ids_.push_back(page);
  }
}

void StepPlanner::AddRow(int32_t token_id, int32_t position) {
  CHECK(token_id >= 0 && token_id < options_.vocab_size);
  token_ids_.push_back(token_id);
  positions_.push_back(position);
  // In double: at position 262143 an f32 product would be off by 0.01 of a turn's radian.
  for (double inv_freq : inv_freq_) {
    const double angle = position * inv_freq;
    rope_cos_.push_back(static_cast<float>(std::cos(angle)));
    rope_sin_.push_back(static_cast<float>(std::sin(angle)));
  }
}

}  // namespace banyan::trunk
