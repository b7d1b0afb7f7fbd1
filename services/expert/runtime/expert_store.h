// Maps a shard of the expert pool and lends views of its weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/open_checkpoint.h"
#include "common/io/checkpoint.h"
#include "common/parallel/worker_pool.h"
#include "common/pool/shard.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/runtime/pool_description.h"

namespace banyan::expert {

// What an executor needs to know of the weights.
struct ExpertTable {
  ShardGeometry geometry;
  // [num_layers][num_shard_experts]; empty for a layer without routed experts.
  std::vector<std::vector<ExpertWeights>> layers;
};

// Immutable after Open, apart from Load; views live as long as the store. Weights stay where the
// checkpoint's files are mapped: nothing is copied.
class ExpertStore {
 public:
  // Reads config.json and every header; no weight is touched. Errors of Checkpoint::Open,
  // LoadModelConfig and CheckComplete; kInvalidArgument when the shard does not fit the model;
  // kFailedPrecondition when no layer has routed experts.
  // kFailedPrecondition too when an expert is neither bf16 nor f32: those are served from packs.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Open(
      const std::string& directory, const ShardSpec& shard,
      LoadFormat load_format = LoadFormat::kAuto);
  // The same of a model that CheckComplete has passed.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> FromModel(OpenedModel model,
                                                                const ShardSpec& shard);

  // Brings exactly this shard's bytes into memory (the page cache), on the pool's threads.
  // `progress` is called from this thread with bytes done; it returns false to stop early.
  // kCancelled then; kDataLoss when a file changed since Open.
  absl::Status Load(WorkerPool& pool, absl::FunctionRef<bool(uint64_t bytes_done)> progress) const;

  // The gate and up slices of every expert: what can be read in long runs, two thirds of the pool.
  std::vector<std::span<const std::byte>> ContiguousWeights() const;

  const ExpertTable& table() const { return table_; }
  const ShardGeometry& geometry() const { return table_.geometry; }
  const PoolDescription& description() const { return description_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelConfig& config() const { return config_; }

 private:
  ExpertStore() = default;

  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
  ExpertTable table_;
  PoolDescription description_;
};

// Bytes of one expert's slice: what a call that selects it reads.
uint64_t ExpertSliceBytes(const ExpertWeights& weights, const ShardGeometry& geometry);

}  // namespace banyan::expert
