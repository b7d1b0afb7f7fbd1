// What each tensor of a checkpoint is for and where it goes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/model_config.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"
#include "common/plan/trunk_format.h"

namespace banyan {

struct PlannedTensors {
  std::string name;         // "delta-net", "routed experts", ...
  std::string destination;  // "trunk", "experts", or "unused: " and why
  std::string formats;      // as stored, most bytes first: "nf4, bf16"
  int64_t count = 0;
  uint64_t bytes = 0;
};

// The classes that a checkpoint has, in the order of a token's way through the model. Every tensor
// is in exactly one, companions of quantised ones too; `summary` is what CheckComplete gave.
std::vector<PlannedTensors> ClassifyTensors(const Checkpoint& checkpoint, const ModelConfig& config,
                                            const CheckpointSummary& summary);

// The trunk's tensors as they are kept by one device of those that share it (tensor_parallel.h), or
// by the only one.
struct TrunkWeightSizes {
  uint64_t file_bytes = 0;         // used where the checkpoint is mapped, by all devices together
  uint64_t sliced_bytes = 0;       // copied from there: slices that do not lie in one piece
  uint64_t decoded_bytes = 0;      // of matrices that are quantised or f16 there
  uint64_t code_bytes = 0;         // of matrices that are made to 8-bit codes, scales included
  uint64_t table_bytes = 0;        // of an embedding that is not the head too: on the host always
  std::vector<uint64_t> matrices;  // each but that one; codes and scales apart
  std::vector<uint64_t> vectors;   // and convolutions: always copied, as f32
  // Read for one token: every matrix of the layers, the head, one row of the embedding.
  uint64_t bytes_per_token = 0;

  uint64_t matrix_bytes() const;
  uint64_t vector_bytes() const;
};
TrunkWeightSizes TrunkWeightSizesOf(const Checkpoint& checkpoint, const ModelConfig& config,
                                    TrunkFormat format = TrunkFormat::kBf16,
                                    int32_t tensor_parallel = 1);

// Host memory of a checkpoint's table of tensors.
uint64_t TensorIndexBytes(const Checkpoint& checkpoint);

}  // namespace banyan
