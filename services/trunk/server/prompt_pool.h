// The pools of the expert hosts on this machine, brought to where the trunk's device reads them
// (docs/adr/prompt-experts.md).
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/config/model_config.h"
#include "common/plan/prompt_experts.h"
#include "services/trunk/experts/cluster_check.h"
#include "services/trunk/experts/expert_directory.h"
#include "services/trunk/experts/lent_pool.h"
#include "services/trunk/model/prompt_experts.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// `pools` hold the memory that the backend has mapped and `experts` points to; they outlive it.
struct PromptPool {
  std::vector<std::unique_ptr<LentPool>> pools;  // by shard
  PromptExpertPool experts;                      // some, for the longest prompts at least
  double bytes_per_second = 0;                   // as Backend::MapHost
};

// Borrows the pool of every shard and maps the experts of `share` for the backend. The cluster is
// ready. kFailedPrecondition: a pool that no host of this machine lends, pools that do not make
// whole experts, or a link too slow to choose any; errors of LentPool::Open, Backend::MapHost.
// After an error, too, out->pools has what may have been mapped.
absl::Status BorrowPromptPool(const ExpertDirectory& directory, const ExpectedModel& model,
                              const ModelConfig& config, const PromptExpertShare& share,
                              int32_t long_prompt_tokens, Backend* backend, PromptPool* out);

}  // namespace banyan::trunk
