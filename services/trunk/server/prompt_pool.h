// The pools of the expert hosts on this machine, brought to where the trunk's device reads them
// (docs/adr/prompt-experts.md).
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/plan/prompt_experts.h"
#include "services/trunk/experts/cluster_check.h"
#include "services/trunk/experts/expert_directory.h"
#include "services/trunk/experts/lent_pool.h"
#include "services/trunk/model/prompt_experts.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// `pools` hold the memory that the other one points to; they outlive the backend.
struct PromptPool {
  std::vector<std::unique_ptr<LentPool>> pools;  // by shard
  PromptExpertPool experts;                      // some, for the longest prompts at least
  double bytes_per_second = 0;                   // as Backend::MapHost
};

// Borrows the pool of every shard and maps the experts of `share` for the backend. The cluster is
// ready. kFailedPrecondition: a pool that no host of this machine lends, pools that do not make
// whole experts, or a link too slow to choose any; errors of LentPool::Open, Backend::MapHost.
absl::StatusOr<PromptPool> BorrowPromptPool(const ExpertDirectory& directory,
                                            const ExpectedModel& model, const ModelConfig& config,
                                            const PromptExpertShare& share,
                                            int32_t long_prompt_tokens, Backend* backend);

}  // namespace banyan::trunk
