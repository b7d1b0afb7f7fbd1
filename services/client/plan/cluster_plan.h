// What a trunk and its expert shards would take, computed as they compute it themselves
// (common/plan), without loading anything.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/open_checkpoint.h"
#include "common/plan/prompt_experts.h"
#include "common/plan/shard_plan.h"
#include "common/plan/tensor_classes.h"
#include "common/plan/trunk_format.h"
#include "common/plan/trunk_plan.h"
#include "common/tensor/dtype.h"

namespace banyan::client {

struct ClusterPlanOptions {
  std::string model_dir;
  LoadFormat load_format = LoadFormat::kAuto;
  int32_t num_shards = 2;
  ShardSplit split = ShardSplit::kWidth;
  std::string pool_format = "auto";
  PoolMemoryMode pool_memory = PoolMemoryMode::kMap;
  int32_t tensor_parallel = 1;              // devices that share the trunk
  std::optional<TrunkFormat> trunk_format;  // as --trunk_format; none: auto
  std::optional<DType> kv_dtype;            // as --kv_format; none: auto
  DType expert_activations = DType::kF32;   // of --expert_activations
  bool on_gpu = false;
  uint64_t vram_budget_bytes = 0;  // of each GPU; on_gpu: more than 0
  // For the shards, and the trunk where it is not on a GPU, on one machine; 0: each service has
  // what it takes by default on this one.
  uint64_t host_budget_bytes = 0;
  int32_t max_context_tokens = 0;
  int32_t max_sequences = 0;
  int32_t max_batch_tokens = 0;
  int32_t halved_rows = 0;           // as PromptSteps
  PromptExpertShare prompt_experts;  // as there
  int num_threads = 1;               // of the trunk
};

struct ClusterPlan {
  ModelConfig config;
  std::string directory;
  std::string fingerprint;
  std::vector<PlannedTensors> tensors;
  bool on_gpu = false;
  int32_t tensor_parallel = 1;
  TrunkPlan trunk;  // its memory: of each GPU
  std::vector<ShardPlan> shards;
  ShardSplit split = ShardSplit::kWidth;
  uint64_t host_budget_bytes = 0;       // as given
  uint64_t machine_bytes = 0;           // what this machine or container has
  uint64_t trunk_bytes_per_token = 0;   // weights
  uint64_t state_bytes_per_token = 0;   // recurrent state, read and written
  uint64_t expert_bytes_per_token = 0;  // all shards

  uint64_t shard_bytes() const;
  // Of all services, trunk included unless it is on a GPU.
  uint64_t host_bytes() const;
  // Everything that a token reads from host memory, at `bytes_per_second`.
  double TokensPerSecond(double bytes_per_second) const;
  // --host_budget of a service, where one was given for all; 0: none.
  uint64_t trunk_budget_bytes() const;
};

// Errors of OpenModel, CheckComplete, PlanShard and PlanTrunk. kResourceExhausted too where all
// services together exceed host_budget_bytes, with the changes that would do.
absl::StatusOr<ClusterPlan> PlanCluster(const ClusterPlanOptions& options);

// Bytes per second that `num_threads` threads read from memory of this machine, beyond the caches;
// takes about a quarter of a second. 0 where there is no memory to try it with.
double MeasureHostBandwidth(int num_threads);

}  // namespace banyan::client
