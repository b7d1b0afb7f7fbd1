// Which ids a sequence holds, for the penalties.
#pragma once

#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "services/trunk/sampling/sampling_params.h"

namespace banyan::trunk {

// Thread-compatible. Memory and time go with the number of different ids, not with the vocabulary.
class TokenHistory {
 public:
  // Empty, for requests without penalties.
  TokenHistory() = default;
  explicit TokenHistory(std::span<const int32_t> prompt_ids) {
    for (const int32_t id : prompt_ids) output_counts_.try_emplace(id, 0);
  }

  static bool NeededBy(const SamplingParams& params) {
    return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
           params.frequency_penalty != 0.0f;
  }

  void AddOutput(int32_t id) { ++output_counts_[id]; }

  // Occurrences in the output; ids of the prompt alone are there with 0.
  const absl::flat_hash_map<int32_t, int32_t>& output_counts() const { return output_counts_; }

 private:
  absl::flat_hash_map<int32_t, int32_t> output_counts_;
};

}  // namespace banyan::trunk
