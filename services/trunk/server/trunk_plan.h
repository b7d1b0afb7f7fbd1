// How long contexts are and how many KV pages there are, from the model and a memory budget; before
// anything is allocated.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/memory/memory_plan.h"
#include "services/trunk/model/decoder.h"

namespace banyan::trunk {

struct TrunkPlanInput {
  uint64_t weight_bytes = 0;  // tensors of the trunk as they will be kept
  TrunkFormat trunk_format = TrunkFormat::kBf16;
  DType kv_dtype = DType::kF32;
  int32_t max_context_tokens = 0;  // 0: what model and memory allow
  int32_t max_sequences = 0;
  int32_t max_batch_tokens = 0;
  uint64_t budget_bytes = 0;  // 0: three quarters of available_bytes, nine tenths of a GPU's
  uint64_t available_bytes = 0;
  bool on_gpu = false;  // budget and available bytes are the GPU's, and weights are copied there
};

struct TrunkPlan {
  DecoderOptions decoder;  // max_context_tokens is never 0 here
  MemoryPlan memory;
};

// Plans the memory that the backend computes in. Pages for max_sequences requests of 4096 tokens
// each, at least for one whole context, as far as the budget goes; pages that are never used cost
// address space only. kInvalidArgument: more context than the model has positions;
// kResourceExhausted with the table: the budget does not hold the rest and one context, or, where
// the context is ours to choose, not even 1024 tokens.
absl::StatusOr<TrunkPlan> PlanTrunk(const ModelConfig& config, const TrunkPlanInput& input,
                                    const Backend& backend);

}  // namespace banyan::trunk
