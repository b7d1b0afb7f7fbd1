#include "services/client/plan/cluster_plan.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <span>
#include <utility>

#include "common/base/byte_size.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/memory/memory_plan.h"
#include "common/parallel/memory_bandwidth.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/decoder_memory.h"
#include "common/plan/tensor_parallel.h"

namespace banyan::client {
namespace {

constexpr absl::Duration kBandwidthTime = absl::Milliseconds(100);
constexpr size_t kBandwidthBytes = size_t{512} << 20;  // beyond the caches of most machines

absl::StatusOr<std::vector<ShardPlan>> PlanShards(const ClusterPlanOptions& options,
                                                  const OpenedModel& model,
                                                  const CheckpointSummary& summary) {
  std::vector<ShardPlan> shards;
  for (int32_t i = 0; i < options.num_shards; ++i) {
    ShardPlanInput input;
    input.checkpoint = model.checkpoint.get();
    input.config = &model.config;
    input.summary = &summary;
    input.shard = {i, options.num_shards, options.split};
    input.pool_format = options.pool_format;
    input.memory = options.pool_memory;
    input.weights_generated = options.load_format == LoadFormat::kDummy;
    input.total_bytes = TotalHostMemory();
    input.available_bytes = AvailableHostMemory();
    if (options.host_budget_bytes > 0) {
      // The sum is what counts, on a machine that need not be this one.
      input.total_bytes = 0;
      input.budget_bytes = std::numeric_limits<uint64_t>::max();
    }
    ASSIGN_OR_RETURN(ShardPlan plan, PlanShard(input));
    if (options.host_budget_bytes > 0) {
      plan.memory = plan.memory.WithBudget(plan.memory.total_bytes(), "--host_budget");
    }
    shards.push_back(std::move(plan));
  }
  return shards;
}

TrunkPlanInput TrunkInput(const ClusterPlanOptions& options, const OpenedModel& model,
                          uint64_t shard_bytes) {
  TrunkPlanInput input;
  const int32_t parts = options.tensor_parallel;
  input.tensor_parallel = parts;
  input.weights = TrunkWeightSizesOf(*model.checkpoint, model.config, TrunkFormat::kBf16, parts);
  input.int8_weights =
      TrunkWeightSizesOf(*model.checkpoint, model.config, TrunkFormat::kInt8, parts);
  input.trunk_format = options.trunk_format;
  input.kv_dtype = options.kv_dtype.value_or(options.on_gpu ? DType::kBF16 : DType::kF32);
  input.expert_activations = options.expert_activations;
  input.index_bytes = TensorIndexBytes(*model.checkpoint);
  input.weights_generated = options.load_format == LoadFormat::kDummy;
  input.max_context_tokens = options.max_context_tokens;
  input.max_sequences = options.max_sequences;
  input.max_batch_tokens = options.max_batch_tokens;
  input.halved_rows = options.halved_rows;
  input.prompt_experts = options.prompt_experts;
  input.on_gpu = options.on_gpu;
  input.num_threads = std::max(1, options.num_threads / parts);
  if (options.on_gpu) {
    input.budget_bytes = options.vram_budget_bytes;
  } else if (options.host_budget_bytes > 0) {
    input.budget_bytes = options.host_budget_bytes;
    input.others_bytes = shard_bytes;
    input.others = fmt::format("{} expert shard(s)", options.num_shards);
  } else {
    input.available_bytes = AvailableHostMemory();
  }
  return input;
}

absl::StatusOr<ClusterPlan> PlanOpened(const ClusterPlanOptions& options, const OpenedModel& model,
                                       const CheckpointSummary& summary) {
  RETURN_IF_ERROR(CheckTensorParallel(model.config, options.tensor_parallel));
  ASSIGN_OR_RETURN(std::vector<ShardPlan> shards, PlanShards(options, model, summary));
  uint64_t shard_bytes = 0;
  uint64_t expert_bytes_per_token = 0;
  for (const ShardPlan& shard : shards) {
    shard_bytes += shard.memory.total_bytes();
    expert_bytes_per_token += shard.pool.bytes_per_token;
  }
  const TrunkPlanInput input = TrunkInput(options, model, shard_bytes);
  ASSIGN_OR_RETURN(TrunkPlan trunk, PlanTrunk(model.config, input));
  if (trunk.gpu_host && options.host_budget_bytes > 0) {
    MemoryPlan host("host memory of all services", options.host_budget_bytes, "--host_budget");
    for (size_t i = 0; i < shards.size(); ++i) {
      host.Add(fmt::format("shard {}", i), shards[i].memory.total_bytes());
    }
    for (const MemoryPlan::Item& item : trunk.gpu_host->items()) {
      host.Add("trunk: " + item.name, item.bytes, item.note);
    }
    if (const absl::Status fits = host.Check(); !fits.ok()) {
      return WithChanges(fits, {{"--host_budget", std::to_string(host.total_bytes()),
                                 FormatByteSize(host.total_bytes())}});
    }
  }
  const TrunkWeightSizes& trunk_weights =
      trunk.decoder.trunk_format == TrunkFormat::kInt8 ? input.int8_weights : input.weights;
  return ClusterPlan{
      .config = model.config,
      .directory = model.checkpoint->directory(),
      .fingerprint = model.checkpoint->fingerprint(),
      .tensors = ClassifyTensors(*model.checkpoint, model.config, summary),
      .on_gpu = options.on_gpu,
      .tensor_parallel = options.tensor_parallel,
      .trunk = std::move(trunk),
      .shards = std::move(shards),
      .split = options.split,
      .host_budget_bytes = options.host_budget_bytes,
      .machine_bytes = TotalHostMemory(),
      .trunk_bytes_per_token =
          static_cast<uint64_t>(options.tensor_parallel) * trunk_weights.bytes_per_token,
      .state_bytes_per_token =
          2 * RecurrentStateBytes(DeltaNetShapeOf(model.config),
                                  CountMixers(model.config, MixerKind::kLinearAttention), 1),
      .expert_bytes_per_token = expert_bytes_per_token};
}

// Pool formats, from the most exact on, of which the first that fits is named.
std::vector<PlanChange> SmallerPools(const ClusterPlanOptions& options, const OpenedModel& model,
                                     const CheckpointSummary& summary) {
  for (const char* format : {"bf16", "int8", "int4", "nf4"}) {
    if (format == options.pool_format) continue;
    ClusterPlanOptions changed = options;
    changed.pool_format = format;
    if (PlanOpened(changed, model, summary).ok()) return {{"--pool_format", format, ""}};
  }
  return {};
}

}  // namespace

uint64_t ClusterPlan::shard_bytes() const {
  uint64_t bytes = 0;
  for (const ShardPlan& shard : shards) bytes += shard.memory.total_bytes();
  return bytes;
}

uint64_t ClusterPlan::trunk_budget_bytes() const {
  if (host_budget_bytes == 0 || on_gpu) return 0;
  return host_budget_bytes - shard_bytes();
}

uint64_t ClusterPlan::host_bytes() const {
  return shard_bytes() + (on_gpu ? trunk.gpu_host->total_bytes() : trunk.memory.total_bytes());
}

double ClusterPlan::TokensPerSecond(double bytes_per_second) const {
  const uint64_t bytes =
      expert_bytes_per_token + (on_gpu ? 0 : trunk_bytes_per_token + state_bytes_per_token);
  return bytes == 0 ? 0 : bytes_per_second / static_cast<double>(bytes);
}

absl::StatusOr<ClusterPlan> PlanCluster(const ClusterPlanOptions& options) {
  ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model_dir, options.load_format));
  ASSIGN_OR_RETURN(const CheckpointSummary summary, CheckComplete(*model.checkpoint, model.config));
  absl::StatusOr<ClusterPlan> plan = PlanOpened(options, model, summary);
  if (absl::IsResourceExhausted(plan.status()) && options.host_budget_bytes > 0) {
    const std::vector<PlanChange> pools = SmallerPools(options, model, summary);
    if (!pools.empty()) return WithChanges(plan.status(), pools);
  }
  if (plan.ok() && !options.on_gpu && options.host_budget_bytes > 0) {
    // As the trunk itself will say it, given its part of the budget.
    plan->trunk.memory = plan->trunk.memory.Without("others").WithBudget(plan->trunk_budget_bytes(),
                                                                         "--host_budget");
  }
  return plan;
}

double MeasureHostBandwidth(int num_threads) {
  const size_t bytes = std::min<size_t>(kBandwidthBytes, AvailableHostMemory() / 4);
  const std::unique_ptr<std::byte[]> memory(new (std::nothrow) std::byte[bytes]);
  if (memory == nullptr || bytes == 0) return 0;
  WorkerPool pool({.num_threads = num_threads});
  constexpr size_t kPart = size_t{1} << 20;
  pool.ParallelFor(static_cast<int64_t>((bytes + kPart - 1) / kPart), [&](int64_t part, int) {
    const size_t first = static_cast<size_t>(part) * kPart;
    std::fill_n(memory.get() + first, std::min(kPart, bytes - first), std::byte{1});
  });
  const std::span<const std::byte> span(memory.get(), bytes);
  return MeasureReadBandwidth(pool, {&span, 1}, kBandwidthTime);
}

}  // namespace banyan::client
