// The routed experts of long prompts that the trunk computes itself, with weights from pools that
// it has mapped (docs/adr/prompt-experts.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/config/model_config.h"
#include "common/plan/prompt_experts.h"
#include "common/quant/pool_format.h"
#include "services/trunk/model/activations.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/routing/expert_share.h"

namespace banyan::trunk {

// Packed experts (docs/formats/expert_pack.md) in memory that the backend has mapped (MapHost) and
// that outlives it. Those that are cut by width are in several slices, which all have the same
// width.
struct PromptExpertPool {
  struct Slice {
    int32_t first_expert = 0;
    int32_t num_experts = 0;
    // Of the first of them, by layer; null for one without routed experts.
    std::vector<const std::byte*> layers;
  };
  PoolFormat format = PoolFormat::kBF16;
  int32_t width = 0;                    // of each slice
  int64_t expert_bytes = 0;             // of an expert in a slice
  PromptExpertCounts own_experts = {};  // of which the slices make whole ones
  int32_t long_prompt_tokens = kLongPromptTokens;
  std::vector<Slice> slices;  // in the order in which what they give is added
};

// What is computed here of a row depends on its sequence alone. Owned by one thread; allocates
// nothing once it is made.
class PromptExperts {
 public:
  PromptExperts(const ModelConfig& config, int32_t max_rows, PromptExpertPool pool);

  // Whether the step has such rows; for them:
  bool BeginStep(const StepPlan& plan);
  // The routing of a layer, [num_rows, top_k], on the host, is here: what is left of the ids for
  // the expert hosts. Valid until the next call, as the arrays must be.
  const uint16_t* Take(int32_t num_rows, const uint16_t* expert_ids, const float* weights);
  // a.hidden += what has been taken, of these rows.
  void Queue(int32_t layer, int32_t num_rows, const Activations& a, Backend* backend);
  // What is needed behind that layer may be read once all that is queued so far is done.
  void Announce(int32_t layer, Backend* backend);

  // Of all calls so far.
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  const PromptExpertPool pool_;
  const int32_t hidden_size_;
  ExpertShare share_;
  std::vector<ExpertShare::OwnRows> rows_;  // of the step
  std::vector<HostExpert> experts_;
  std::vector<const std::byte*> announced_;
  uint64_t bytes_read_ = 0;
};

}  // namespace banyan::trunk
