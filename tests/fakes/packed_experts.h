// The routed experts of a checkpoint as the hosts' pools have them (docs/formats/expert_pack.md),
// in memory of this process.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/quant/pool_format.h"
#include "services/trunk/model/prompt_experts.h"

namespace banyan::test {

struct PackedExperts {
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  // Points to the memory; all experts, of which none are the trunk's own yet.
  trunk::PromptExpertPool pool;
  std::vector<std::unique_ptr<std::byte, Free>> memory;  // in whole pages
  std::vector<std::span<const std::byte>> layers;        // of each slice
};

// Cut into two halves of the width, as two hosts have them. Aborts where that fails.
PackedExperts PackExperts(const Checkpoint& checkpoint, const ModelConfig& config,
                          PoolFormat format);

}  // namespace banyan::test
