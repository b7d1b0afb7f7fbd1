// The pairs of a row and an expert that the trunk computes itself (docs/adr/prompt-experts.md), and
// what is left of the routing for the expert hosts. No gRPC, no CUDA.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "services/trunk/routing/dispatch_plan.h"

namespace banyan::trunk {

// Of certain rows of a batch, the pairs with the first of the experts, grouped by expert. Owned by
// one thread; allocates nothing once it is made.
class ExpertShare {
 public:
  // Rows [first, end) have pairs with experts [0, own_experts) computed here.
  struct OwnRows {
    int32_t first = 0;
    int32_t end = 0;
    int32_t own_experts = 0;
  };

  struct Options {
    int32_t num_experts = 0;
    int32_t top_k = 0;
    int32_t own_experts = 0;  // of any row at the most, 0 to num_experts
    int32_t max_rows = 0;     // of a batch
  };

  // One expert's pairs, at least one.
  struct Group {
    int32_t expert = 0;
    int32_t first_pair = 0;
    int32_t num_pairs = 0;
  };

  explicit ExpertShare(const Options& options);

  //   own_rows             ranges of the batch's rows, ascending, none over another
  //   expert_ids, weights  [num_rows, top_k] as RouterTopK leaves them; ids below num_experts
  // expert_ids are borrowed until the next Build. Cost: 70 us for 4,159 rows of ten experts each,
  // half of them its own (Zen 4).
  void Build(int32_t num_rows, std::span<const OwnRows> own_rows, const uint16_t* expert_ids,
             const float* weights);

  // Of the last Build, valid until the next.
  std::span<const Group> groups() const { return {groups_.data(), num_groups_}; }  // by expert
  // Of every pair, group after group, rows ascending in each.
  std::span<const int32_t> pair_rows() const { return {pair_rows_.data(), num_pairs_}; }
  std::span<const float> pair_weights() const { return {pair_weights_.data(), num_pairs_}; }
  // [num_rows, top_k]: the batch's ids with kOtherShard in place of these pairs; the batch's own
  // array if there are none.
  const uint16_t* host_ids() const { return host_ids_; }

 private:
  struct Pair {
    int32_t row = 0;
    int32_t place = 0;  // of [num_rows, top_k]
  };

  size_t CollectPairs(std::span<const OwnRows> own_rows, const uint16_t* expert_ids);

  const Options options_;
  std::vector<Pair> pairs_;              // as they come
  std::vector<int32_t> next_pair_;       // [num_experts]: counts, then where the next one goes
  std::vector<int32_t> pair_rows_;       // [max_rows * top_k]
  std::vector<float> pair_weights_;      // [max_rows * top_k]
  std::vector<uint16_t> remaining_ids_;  // [max_rows * top_k]
  std::vector<Group> groups_;            // [own_experts]
  size_t num_pairs_ = 0;
  size_t num_groups_ = 0;
  const uint16_t* host_ids_ = nullptr;
};

}  // namespace banyan::trunk
