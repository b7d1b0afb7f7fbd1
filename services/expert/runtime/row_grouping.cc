#include "services/expert/runtime/row_grouping.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/base/strings.h"

namespace banyan::expert {
namespace {

// As in frames (common/rpc/expert_frame.h): this place of the row belongs to another shard.
constexpr uint16_t kElsewhere = 0xffff;

template <class T>
T ReadAt(const std::byte* array, int64_t idx) {
  T value;
  std::memcpy(&value, array + idx * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace

RowGrouping::RowGrouping(int32_t first_expert, int32_t num_experts)
    : first_expert_(first_expert),
      last_row_(static_cast<size_t>(num_experts)),
      next_(static_cast<size_t>(num_experts) + 1) {}

absl::Status RowGrouping::Check(const ExpertCall& call) {
  const auto num_experts = static_cast<int32_t>(last_row_.size());
  std::fill(last_row_.begin(), last_row_.end(), -1);
  int64_t place = 0;
  for (int32_t row = 0; row < call.num_rows; ++row) {
    for (int32_t k = 0; k < call.top_k; ++k, ++place) {
      const uint16_t id = ReadAt<uint16_t>(call.expert_ids, place);
      if (id == kElsewhere) continue;
      const int32_t expert = id - first_expert_;
      if (expert < 0 || expert >= num_experts) {
        return InvalidArgumentF("row {} place {}: expert {}, this shard has {} to {}", row, k, id,
                                first_expert_, first_expert_ + num_experts - 1);
      }
      if (last_row_[static_cast<size_t>(expert)] == row) {
        return InvalidArgumentF("row {} place {}: expert {} twice in one row", row, k, id);
      }
      last_row_[static_cast<size_t>(expert)] = row;
      const float weight = ReadAt<float>(call.weights, place);
      if (!std::isfinite(weight)) {
        return InvalidArgumentF("row {} place {}: weight {} of expert {}, expected a finite number",
                                row, k, weight, id);
      }
    }
  }
  return absl::OkStatus();
}

void RowGrouping::Group(const ExpertCall& call, int32_t first_row, int32_t num_rows,
                        int32_t (*places)(int32_t num_pairs)) {
  const int64_t begin = int64_t{first_row} * call.top_k;
  const int64_t end = begin + int64_t{num_rows} * call.top_k;
  // next_[e + 1] counts expert e, then next_[e] is where its next pair goes.
  std::fill(next_.begin(), next_.end(), 0);
  for (int64_t place = begin; place < end; ++place) {
    const uint16_t id = ReadAt<uint16_t>(call.expert_ids, place);
    if (id != kElsewhere) ++next_[static_cast<size_t>(id - first_expert_ + 1)];
  }
  groups_.clear();
  num_experts_ = 0;
  num_places_ = 0;
  int32_t num_pairs = 0;
  for (size_t e = 0; e + 1 < next_.size(); ++e) {
    const int32_t count = next_[e + 1];
    if (count > 0) ++num_experts_;
    next_[e] = num_pairs;
    const int32_t next = num_pairs + count;
    for (int32_t left = (count + kMaxGroupPairs - 1) / kMaxGroupPairs; left > 0; --left) {
      const int32_t n = (next - num_pairs) / left;
      groups_.push_back({static_cast<int32_t>(e), num_pairs, n, num_places_});
      num_pairs += n;
      num_places_ += places(n);
    }
  }
  SortByLength();
  rows_.resize(static_cast<size_t>(num_pairs));
  weights_.resize(static_cast<size_t>(num_pairs));
  int64_t place = begin;
  for (int32_t row = 0; row < num_rows; ++row) {
    for (int32_t k = 0; k < call.top_k; ++k, ++place) {
      const uint16_t id = ReadAt<uint16_t>(call.expert_ids, place);
      if (id == kElsewhere) continue;
      const auto pair = static_cast<size_t>(next_[static_cast<size_t>(id - first_expert_)]++);
      rows_[pair] = row;
      weights_[pair] = ReadAt<float>(call.weights, place);
    }
  }
}

void RowGrouping::SortByLength() {
  int32_t first[kMaxGroupPairs + 1] = {};  // [n]: of the groups with kMaxGroupPairs - n pairs
  for (const ExpertGroup& group : groups_) ++first[kMaxGroupPairs - group.num_pairs + 1];
  for (int n = 1; n <= kMaxGroupPairs; ++n) first[n] += first[n - 1];
  longest_first_.resize(groups_.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int32_t at = first[kMaxGroupPairs - groups_[g].num_pairs]++;
    longest_first_[static_cast<size_t>(at)] = static_cast<int32_t>(g);
  }
}

void RowGrouping::IndexByRow(int32_t num_rows) {
  // first_of_row_[r + 1] counts row r, then says where its next pair goes, and so ends as it must.
  first_of_row_.assign(static_cast<size_t>(num_rows) + 1, 0);
  for (const int32_t row : rows_) ++first_of_row_[static_cast<size_t>(row) + 1];
  int32_t before = 0;
  for (size_t row = 1; row < first_of_row_.size(); ++row) {
    before += std::exchange(first_of_row_[row], before);
  }
  pairs_by_row_.resize(rows_.size());
  for (size_t pair = 0; pair < rows_.size(); ++pair) {
    const auto at = static_cast<size_t>(first_of_row_[static_cast<size_t>(rows_[pair]) + 1]++);
    pairs_by_row_[at] = static_cast<int32_t>(pair);
  }
}

}  // namespace banyan::expert
