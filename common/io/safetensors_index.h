// model.safetensors.index.json: which shard file holds which tensor.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan {

inline constexpr size_t kMaxSafetensorsIndexBytes = 1'000'000'000;

struct SafetensorsIndex {
  struct Tensor {
    std::string name;
    int32_t file_idx;  // into files
  };
  std::vector<std::string> files;  // base names, sorted, each once, at least one
  std::vector<Tensor> tensors;     // by name, each once
};

// {"metadata": {...}, "weight_map": {name: file}}; other top-level keys are skipped. kDataLoss:
// malformed JSON, no weight_map or an empty one, a name listed twice, a file name that is not a
// plain `*.safetensors` base name (so that an index cannot point outside its directory).
absl::StatusOr<SafetensorsIndex> ParseSafetensorsIndex(std::string_view json,
                                                       std::string_view source);

}  // namespace banyan
