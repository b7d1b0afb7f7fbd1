// Runs one expert call on the host's threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/pool/shard.h"

namespace banyan::expert {

enum class ActivationType : uint8_t { kBF16, kF32 };

// Arrays may lie at any byte address: they point into received frames.
struct ExpertCall {
  int32_t layer = 0;
  int32_t num_rows = 0;
  int32_t top_k = 0;
  const std::byte* expert_ids = nullptr;   // u16 [num_rows, top_k]; kNoExpert: not here
  const std::byte* weights = nullptr;      // f32 [num_rows, top_k]
  const std::byte* activations = nullptr;  // [num_rows, hidden_size] of activation_type
  ActivationType activation_type = ActivationType::kBF16;
  // [num_rows, hidden_size] of reply_type, 64-byte aligned, overwritten with
  // sum over the row's experts here, ascending expert id, of weight * ffn(x); f32 until the last
  // rounding.
  std::byte* out = nullptr;
  ActivationType reply_type = ActivationType::kBF16;
};

// Owned by whoever runs the calls, one at a time. A row's result does not depend on the other rows
// of the call nor on the number of threads.
class ExpertExecutor {
 public:
  virtual ~ExpertExecutor() = default;
  virtual const ShardGeometry& geometry() const = 0;
  // kInvalidArgument (layer, ids outside the shard, an id twice in a row, non-finite weight, top_k
  // or rows beyond the limits) says what was found; nothing is written then.
  virtual absl::Status Run(const ExpertCall& call) = 0;
};

}  // namespace banyan::expert
