#include "tests/fakes/fake_forward_pass.h"

#include <algorithm>
#include <cstddef>
#include <set>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {

uint64_t Mix(uint64_t x) {  // SplitMix64's finaliser
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

uint64_t Extend(uint64_t hash, int32_t token, bool chunked) {
  return Mix(hash ^ Mix(static_cast<uint64_t>(token) * 2 + (chunked ? 1 : 0)));
}

void LogitsOf(uint64_t hash, std::span<float> logits) {
  for (size_t id = 0; id < logits.size(); ++id) {
    const uint64_t bits = Mix(hash + id) >> 40;  // 24 bits
    logits[id] = static_cast<float>(bits) * (8.0f / 16777216.0f) - 4.0f;
  }
}

size_t Idx(int32_t i) { return static_cast<size_t>(i); }

}  // namespace

FakeForwardPass::FakeForwardPass(const Limits& limits) : limits_(limits) {
  slots_.resize(Idx(limits.num_slots));
  pages_.assign(Idx(limits.num_pages), std::vector<int32_t>(Idx(kPageTokens), -1));
}

void FakeForwardPass::Logits(std::span<const int32_t> tokens, int32_t prompt_tokens,
                             std::span<float> logits) {
  uint64_t hash = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    hash = Extend(hash, tokens[i], i < Idx(prompt_tokens));
  }
  LogitsOf(hash, logits);
}

absl::Status FakeForwardPass::Forward(const Step& step) {
  absl::Status status = on_forward ? on_forward(step) : absl::OkStatus();
  CheckStep(step);
  ++num_steps_;
  row_slots_.clear();
  row_positions_.clear();
  for (const StepSegment& segment : step.segments) {
    SlotState& slot = slots_[Idx(segment.slot)];
    if (segment.first_position == 0) slot = SlotState{.tokens = {}, .hashes = {}};
    CheckContinues(segment);
    slot.defined = status.ok();
    slot.prompt_over = !segment.chunked || segment.num_rows % kDeltaNetChunkTokens != 0;
    for (int32_t row = 0; row < segment.num_rows; ++row) {
      const int32_t position = segment.first_position + row;
      const int32_t token = step.token_ids[Idx(segment.first_row + row)];
      const uint64_t before = slot.hashes.empty() ? 0 : slot.hashes.back();
      slot.tokens.push_back(token);
      slot.hashes.push_back(Extend(before, token, segment.chunked));
      pages_[Idx(segment.pages[Idx(position / kPageTokens)])][Idx(position % kPageTokens)] =
          status.ok() ? token : -2;
      row_slots_.push_back(segment.slot);
      row_positions_.push_back(position);
    }
  }
  if (!status.ok()) row_slots_.clear();
  return status;
}

void FakeForwardPass::CheckStep(const Step& step) {
  CHECK(step.step_id > last_step_id_);
  last_step_id_ = step.step_id;
  CHECK(!step.segments.empty());
  CHECK(step.token_ids.size() <= Idx(limits_.max_rows));
  std::set<int32_t> slots;
  std::set<int32_t> pages;
  int32_t next_row = 0;
  for (const StepSegment& segment : step.segments) {
    CHECK(segment.first_row == next_row);
    CHECK(segment.num_rows > 0);
    next_row += segment.num_rows;
    CHECK(segment.slot >= 0 && segment.slot < limits_.num_slots);
    CHECK(slots.insert(segment.slot).second);
    const int32_t end = segment.first_position + segment.num_rows;
    CHECK(segment.first_position >= 0 && end <= limits_.max_position);
    CHECK(Idx(end) <= segment.pages.size() * Idx(kPageTokens));
    for (const int32_t page : segment.pages) {
      CHECK(page >= 0 && page < limits_.num_pages);
      CHECK(pages.insert(page).second);
    }
  }
  CHECK(Idx(next_row) == step.token_ids.size());
  for (const int32_t id : step.token_ids) CHECK(id >= 0 && id < limits_.vocab_size);
}

void FakeForwardPass::CheckContinues(const StepSegment& segment) {
  const SlotState& slot = slots_[Idx(segment.slot)];
  CHECK(slot.tokens.size() == Idx(segment.first_position));
  if (segment.first_position == 0) {
    CHECK(segment.chunked);
  } else {
    CHECK(slot.defined);
  }
  if (segment.chunked) {
    CHECK(segment.first_position % kDeltaNetChunkTokens == 0);
    CHECK(!slot.prompt_over);
  }
  // Nobody has written into the pages meanwhile.
  for (int32_t p = 0; p < segment.first_position; ++p) {
    const std::vector<int32_t>& page = pages_[Idx(segment.pages[Idx(p / kPageTokens)])];
    CHECK(page[Idx(p % kPageTokens)] == slot.tokens[Idx(p)]);
  }
}

absl::Status FakeForwardPass::LogitsOfRow(int32_t row, std::span<float> logits) const {
  CHECK(row >= 0 && Idx(row) < row_slots_.size());
  const SlotState& slot = slots_[Idx(row_slots_[Idx(row)])];
  const size_t position = Idx(row_positions_[Idx(row)]);
  LogitsOf(slot.hashes[position], logits);
  if (!on_logits) return absl::OkStatus();
  return on_logits(std::span(slot.tokens).first(position + 1), logits);
}

absl::Status FakeForwardPass::RunHead(const HeadQuery& query) {
  const size_t num_rows = query.full_rows.size() + query.top_rows.size();
  CHECK(num_rows > 0 && num_rows <= Idx(limits_.max_logits_rows));
  most_logits_rows_ = std::max(most_logits_rows_, static_cast<int32_t>(num_rows));
  ++num_head_runs_;
  num_full_rows_ += static_cast<int64_t>(query.full_rows.size());
  num_top_rows_ += static_cast<int64_t>(query.top_rows.size());
  const size_t vocab = Idx(limits_.vocab_size);
  for (size_t i = 0; i < query.full_rows.size(); ++i) {
    CHECK(query.stride >= limits_.vocab_size);
    absl::Status status = LogitsOfRow(
        query.full_rows[i], {query.logits + i * static_cast<size_t>(query.stride), vocab});
    if (!status.ok()) return status;
  }
  if (query.top_rows.empty()) return absl::OkStatus();
  CHECK(query.num_ids >= 1 && query.num_ids <= limits_.vocab_size);
  CHECK(query.k >= 1 && query.k <= std::min(limits_.max_top_logits, query.num_ids));
  CHECK(query.top.size() == query.top_rows.size() * Idx(query.k));
  CHECK(query.bounded.size() == query.top_rows.size());
  std::vector<float> logits(vocab);
  std::vector<ScoredId> top;
  for (size_t i = 0; i < query.top_rows.size(); ++i) {
    absl::Status status = LogitsOfRow(query.top_rows[i], logits);
    if (!status.ok()) return status;
    const std::span<const float> counting(logits.data(), Idx(query.num_ids));
    query.bounded[i] = WithinBound(counting) ? 1 : 0;
    if (query.bounded[i] == 0) continue;
    SelectTop(counting, query.k, &top);
    std::copy(top.begin(), top.end(), query.top.begin() + static_cast<ptrdiff_t>(i * top.size()));
  }
  return absl::OkStatus();
}

}  // namespace banyan::trunk
