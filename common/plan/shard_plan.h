// How much memory one shard of the expert pool takes on its host, before anything is packed or
// loaded. banyan-expert runs it at its start and `banyan plan` for every shard.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"
#include "common/memory/memory_plan.h"
#include "common/plan/plan_change.h"
#include "common/pool/shard.h"
#include "common/quant/pool_format.h"

namespace banyan {

enum class PoolMemoryMode : uint8_t {
  kMap,        // the page cache, through a mapping of the pack or the checkpoint
  kShm,        // a named segment of shared memory, which outlives the process
  kAnonymous,  // memory of the process on huge pages, read around the page cache
};
std::string_view PoolMemoryName(PoolMemoryMode mode);  // as --pool_memory takes it
absl::StatusOr<PoolMemoryMode> ParsePoolMemory(std::string_view name);

// Which weights a shard holds and in which form.
struct ShardPool {
  ShardGeometry geometry;
  int32_t num_moe_layers = 0;
  // "bf16", "f32", "mixed" (of both) where they are mapped from the checkpoint; of a pack "bf16",
  // "int8", "nf4" or "int4".
  std::string format;
  bool packed = false;
  uint64_t pool_bytes = 0;
  uint64_t bytes_per_token = 0;  // read for one token by this shard, on average over experts
};

// Bytes of the slices that a shard maps from the checkpoint.
uint64_t MappedPoolBytes(const Checkpoint& checkpoint, const ModelConfig& config,
                         const ShardGeometry& geometry);

// `pool_format` as --pool_format. kInvalidArgument: an unknown one, or a shard that gets nothing;
// kFailedPrecondition: the model has no routed experts.
absl::StatusOr<ShardPool> ShardPoolOf(const Checkpoint& checkpoint, const ModelConfig& config,
                                      const CheckpointSummary& summary, const ShardSpec& shard,
                                      const std::string& pool_format);

// The format of the pack that --pool_format asks for: nullopt where the experts are served as they
// are mapped. kInvalidArgument; errors of OwnPoolFormat.
absl::StatusOr<std::optional<PoolFormat>> ResolvePoolFormat(const Checkpoint& checkpoint,
                                                            const ModelConfig& config,
                                                            const CheckpointSummary& summary,
                                                            const std::string& pool_format);

struct ShardPlanInput {
  const Checkpoint* checkpoint = nullptr;
  const ModelConfig* config = nullptr;
  const CheckpointSummary* summary = nullptr;  // what CheckComplete gave
  ShardSpec shard;
  std::string pool_format = "auto";
  PoolMemoryMode memory = PoolMemoryMode::kMap;
  // --load_format dummy: in memory of the process, unless there is a pack of such weights.
  bool weights_generated = false;
  uint64_t budget_bytes = 0;  // 0: what there is
  // Of the machine or container: all of it, what is free now, and what a segment of an earlier
  // start holds already. total_bytes 0: not known, budget_bytes decides alone.
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
  uint64_t there_already_bytes = 0;
};

struct ShardPlan {
  ShardPool pool;
  MemoryPlan memory;
};

// Pages of mapped files give way to others: what counts for them is all of the memory there is.
// Other memory must be free now. Errors of ShardPoolOf; kResourceExhausted with the numbers, the
// table and each change of one flag that would do: the least budget, a smaller pool format, more
// shards; `changes`, unless null, gets them too.
absl::StatusOr<ShardPlan> PlanShard(const ShardPlanInput& input,
                                    std::vector<PlanChange>* changes = nullptr);

}  // namespace banyan
