// Rows of a call, grouped by expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/runtime/expert_executor.h"

namespace banyan::expert {

// Pairs of a group at most: those of a pass over the weights, so that a popular expert is work for
// many threads and costs none of them more.
inline constexpr int32_t kMaxGroupPairs = kMaxPassRows;

// Rows that select one expert; its pairs are consecutive. A popular expert has several groups, one
// after the other, of about the same size.
struct ExpertGroup {
  int32_t expert = 0;  // counted from the shard's first
  int32_t first_pair = 0;
  int32_t num_pairs = 0;
  int32_t first_place = 0;  // of those that its hidden vectors take
};

// Thread-compatible. Reuses its memory: no allocation once the largest block was seen.
class RowGrouping {
 public:
  // Experts [first_expert, first_expert + num_experts).
  RowGrouping(int32_t first_expert, int32_t num_experts);

  // The places of a whole call: every id is kNoExpert or of this shard and occurs once in its row,
  // every weight beside an id is finite. kInvalidArgument names row, place, expected and found.
  absl::Status Check(const ExpertCall& call);

  // Groups rows [first_row, first_row + num_rows) of a checked call by counting sort: groups with
  // ascending expert, pairs of an expert with ascending row.
  // places(n): how many places hidden vectors of a group of n pairs take.
  void Group(const ExpertCall& call, int32_t first_row, int32_t num_rows,
             int32_t (*places)(int32_t num_pairs));

  // The pairs of each of the rows that Group has had, for PairsOf.
  void IndexByRow(int32_t num_rows);
  // Experts ascending.
  std::span<const int32_t> PairsOf(int32_t row) const {
    const auto begin = static_cast<size_t>(first_of_row_[static_cast<size_t>(row)]);
    const auto end = static_cast<size_t>(first_of_row_[static_cast<size_t>(row) + 1]);
    return std::span(pairs_by_row_).subspan(begin, end - begin);
  }

  std::span<const ExpertGroup> groups() const { return groups_; }
  // The groups' numbers, most pairs first and else as they come: threads that take work in this
  // order end at about the same time.
  std::span<const int32_t> longest_first() const { return longest_first_; }
  int32_t num_experts() const { return num_experts_; }         // distinct ones of the groups
  int32_t num_places() const { return num_places_; }           // of all groups
  std::span<const int32_t> rows() const { return rows_; }      // of each pair, less first_row
  std::span<const float> weights() const { return weights_; }  // of each pair

 private:
  void SortByLength();

  const int32_t first_expert_;
  std::vector<int32_t> last_row_;  // [num_experts], of Check
  std::vector<int32_t> next_;      // [num_experts + 1], of Group
  std::vector<ExpertGroup> groups_;
  std::vector<int32_t> longest_first_;
  int32_t num_experts_ = 0;
  int32_t num_places_ = 0;
  std::vector<int32_t> rows_;
  std::vector<float> weights_;
  std::vector<int32_t> first_of_row_;  // [num_rows + 1], in pairs_by_row_
  std::vector<int32_t> pairs_by_row_;
};

}  // namespace banyan::expert
