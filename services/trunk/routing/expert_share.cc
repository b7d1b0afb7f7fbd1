#include "services/trunk/routing/expert_share.h"

#include <algorithm>

#include "common/base/check.h"

namespace banyan::trunk {

ExpertShare::ExpertShare(const Options& options) : options_(options) {
  CHECK(options.num_experts > 0 && options.top_k > 0 && options.max_rows > 0);
  CHECK(options.own_experts >= 0 && options.own_experts <= options.num_experts);
  const size_t places = static_cast<size_t>(options.max_rows) * static_cast<size_t>(options.top_k);
  pairs_.resize(places);
  next_pair_.resize(static_cast<size_t>(options.num_experts));
  pair_rows_.resize(places);
  pair_weights_.resize(places);
  remaining_ids_.resize(places);
  groups_.resize(static_cast<size_t>(options.own_experts));
}

void ExpertShare::Build(int32_t num_rows, std::span<const OwnRows> own_rows,
                        const uint16_t* expert_ids, const float* weights) {
  CHECK(num_rows >= 0 && num_rows <= options_.max_rows);
  CHECK(own_rows.empty() || own_rows.back().end <= num_rows);
  num_groups_ = 0;
  num_pairs_ = options_.own_experts == 0 ? 0 : CollectPairs(own_rows, expert_ids);
  host_ids_ = expert_ids;
  if (num_pairs_ == 0) return;

  int32_t first_pair = 0;
  for (int32_t expert = 0; expert < options_.own_experts; ++expert) {
    int32_t& next = next_pair_[static_cast<size_t>(expert)];
    const int32_t count = next;
    if (count > 0) groups_[num_groups_++] = {expert, first_pair, count};
    next = first_pair;
    first_pair += count;
  }
  const size_t places = static_cast<size_t>(num_rows) * static_cast<size_t>(options_.top_k);
  std::copy_n(expert_ids, places, remaining_ids_.data());
  for (size_t i = 0; i < num_pairs_; ++i) {
    const Pair pair = pairs_[i];
    const auto to = static_cast<size_t>(next_pair_[expert_ids[pair.place]]++);
    pair_rows_[to] = pair.row;
    pair_weights_[to] = weights[pair.place];
    remaining_ids_[static_cast<size_t>(pair.place)] = kOtherShard;
  }
  host_ids_ = remaining_ids_.data();
}

// Counts each expert's pairs of these rows and finds those that are kept: without a branch that
// nothing could predict.
size_t ExpertShare::CollectPairs(std::span<const OwnRows> own_rows, const uint16_t* expert_ids) {
  std::fill(next_pair_.begin(), next_pair_.end(), 0);
  size_t num_pairs = 0;
  int32_t last_end = 0;
  for (const OwnRows& range : own_rows) {
    CHECK(range.first >= last_end && range.end >= range.first);
    CHECK(range.own_experts >= 0 && range.own_experts <= options_.own_experts);
    last_end = range.end;
    int32_t place = range.first * options_.top_k;
    for (int32_t row = range.first; row < range.end; ++row) {
      for (int32_t k = 0; k < options_.top_k; ++k, ++place) {
        const int32_t expert = expert_ids[place];
        DCHECK(expert < options_.num_experts);
        const int32_t own = expert < range.own_experts ? 1 : 0;
        next_pair_[static_cast<size_t>(expert)] += own;
        pairs_[num_pairs] = {row, place};
        num_pairs += static_cast<size_t>(own);
      }
    }
  }
  return num_pairs;
}

}  // namespace banyan::trunk
