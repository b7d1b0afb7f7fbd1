#include "common/plan/shard_plan.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "common/base/byte_size.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/expert_pack.h"
#include "common/plan/decoder_memory.h"
#include "common/plan/tensor_classes.h"
#include "common/pool/own_format.h"
#include "common/pool/pack_builder.h"
#include "common/pool/pack_path.h"

namespace banyan {
namespace {

// The program and its threads, activations and hidden vectors of a call, replies.
constexpr uint64_t kWorkspaceBytes = uint64_t{128} << 20;
// A page of 4 KiB takes an entry of 8 bytes; huge pages keep the tables they may fall back to.
constexpr uint64_t kBytesPerTableByte = 512;

constexpr std::string_view kExperts = ".mlp.experts.";

// The expert that a tensor name's end "12.up_proj.weight" speaks of; -1 for a fused one.
int32_t ExpertOf(std::string_view rest) {
  int32_t expert = -1;
  std::from_chars(rest.data(), rest.data() + rest.size(), expert);
  return expert;
}

// Calls use(entry, numerator, denominator) for each tensor that the shard holds a part of.
template <typename Use>
void ForExpertTensors(const Checkpoint& checkpoint, const ShardGeometry& geometry, const Use& use) {
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    const std::string_view name = entry.name;
    const size_t at = name.find(kExperts);
    if (at == std::string_view::npos || name.starts_with("mtp.")) continue;
    const int32_t expert = ExpertOf(name.substr(at + kExperts.size()));
    if (expert < 0) {
      use(entry, geometry.num_shard_experts, geometry.num_experts);
    } else if (expert >= geometry.first_expert &&
               expert < geometry.first_expert + geometry.num_shard_experts) {
      use(entry, 1, 1);
    }
  }
}

std::string MappedFormat(const Checkpoint& checkpoint, const ShardGeometry& geometry) {
  bool bf16 = false;
  bool f32 = false;
  ForExpertTensors(checkpoint, geometry, [&](const Checkpoint::Entry& entry, int64_t, int64_t) {
    (entry.view.dtype == DType::kBF16 ? bf16 : f32) = true;
  });
  return bf16 && f32 ? "mixed" : bf16 ? "bf16" : "f32";
}

uint64_t ProductBytes(const ModelConfig& config) {
  const auto of_a_row = static_cast<uint64_t>(config.num_experts_per_tok) *
                        static_cast<uint64_t>(config.hidden_size) * sizeof(float);
  return std::min(kMaxProductBytes, kMaxRows * of_a_row);
}

absl::StatusOr<MemoryPlan> MemoryOf(const ShardPlanInput& input, const ShardPool& pool) {
  const bool mapped = input.memory == PoolMemoryMode::kMap && !input.weights_generated;
  const uint64_t there =
      mapped ? input.total_bytes : input.available_bytes + input.there_already_bytes;
  uint64_t budget = input.budget_bytes;
  std::string source = "--host_budget";
  if (budget == 0) {
    budget = there;
    source = mapped ? "memory of this machine or container; --host_budget"
                    : "available memory; --host_budget";
  } else if (input.total_bytes > 0 && budget > there) {
    budget = there;
    source = fmt::format("--host_budget {}, but that is all {}", FormatByteSize(input.budget_bytes),
                         mapped ? "there is" : "that is available");
  }
  MemoryPlan plan("memory of this shard", budget, source);
  plan.Add("expert pool", pool.pool_bytes,
           fmt::format("{} layers of {} experts, {}, {}", pool.num_moe_layers,
                       pool.geometry.num_shard_experts, pool.format,
                       input.weights_generated ? "generated" : PoolMemoryName(input.memory)));
  plan.Add("page tables", pool.pool_bytes / kBytesPerTableByte, "8 bytes for 4 KiB");
  plan.Add("workspace", kWorkspaceBytes + ProductBytes(*input.config),
           "program, threads, activations, replies");
  plan.Add("tensor index", TensorIndexBytes(*input.checkpoint),
           "names and places in the checkpoint");
  return plan;
}

// Of the plan with one thing changed.
bool Fits(const ShardPlanInput& input) {
  const auto pool =
      ShardPoolOf(*input.checkpoint, *input.config, *input.summary, input.shard, input.pool_format);
  if (!pool.ok()) return false;
  const auto memory = MemoryOf(input, *pool);
  return memory.ok() && memory->Check().ok();
}

std::vector<PlanChange> ChangesThatFit(const ShardPlanInput& input, const MemoryPlan& refused) {
  std::vector<PlanChange> out;
  ShardPlanInput changed = input;
  changed.budget_bytes = refused.total_bytes();
  if (Fits(changed)) {
    out.push_back({"--host_budget", std::to_string(refused.total_bytes()),
                   FormatByteSize(refused.total_bytes())});
  }
  // From the most exact on.
  for (const char* format : {"bf16", "int8", "int4", "nf4"}) {
    changed = input;
    changed.pool_format = format;
    if (format == input.pool_format || !Fits(changed)) continue;
    out.push_back({"--pool_format", format, ""});
    break;
  }
  for (int32_t shards = input.shard.num_shards + 1; shards <= kMaxShards; ++shards) {
    changed = input;
    changed.shard.num_shards = shards;
    // The last shard is the largest one.
    changed.shard.index = shards - 1;
    if (!Fits(changed)) continue;
    out.push_back({"--shard", fmt::format("{}/{}", input.shard.index, shards),
                   fmt::format("{} shards on more hosts", shards)});
    break;
  }
  return out;
}

}  // namespace

std::string_view PoolMemoryName(PoolMemoryMode mode) {
  switch (mode) {
    case PoolMemoryMode::kMap:
      return "map";
    case PoolMemoryMode::kShm:
      return "shm";
    case PoolMemoryMode::kAnonymous:
      return "anonymous";
  }
  return "";
}

absl::StatusOr<PoolMemoryMode> ParsePoolMemory(std::string_view name) {
  for (const PoolMemoryMode mode :
       {PoolMemoryMode::kMap, PoolMemoryMode::kShm, PoolMemoryMode::kAnonymous}) {
    if (name == PoolMemoryName(mode)) return mode;
  }
  return InvalidArgumentF("'{}': expected map, shm or anonymous", Printable(name));
}

uint64_t MappedPoolBytes(const Checkpoint& checkpoint, const ModelConfig& config,
                         const ShardGeometry& geometry) {
  uint64_t bytes = 0;
  const auto width = static_cast<uint64_t>(config.moe_intermediate_size);
  ForExpertTensors(
      checkpoint, geometry, [&](const Checkpoint::Entry& entry, int64_t part, int64_t whole) {
        // A slice of the width is a share of rows or columns: the same bytes either way.
        bytes += entry.view.size_bytes() / width * static_cast<uint64_t>(geometry.num_shard_width) /
                 static_cast<uint64_t>(whole) * static_cast<uint64_t>(part);
      });
  return bytes;
}

absl::StatusOr<std::optional<PoolFormat>> ResolvePoolFormat(const Checkpoint& checkpoint,
                                                            const ModelConfig& config,
                                                            const CheckpointSummary& summary,
                                                            const std::string& pool_format) {
  std::optional<PoolFormat> format;
  if (pool_format != "auto") {
    ASSIGN_OR_RETURN(format, ParsePoolFormatFlag(pool_format));
  }
  ASSIGN_OR_RETURN(const std::optional<PoolFormat> own, OwnPoolFormat(checkpoint, config, summary));
  if (!format.has_value()) format = own;
  // Experts that are all bf16 need no pack of it.
  const bool any_f32 =
      std::any_of(summary.classes.begin(), summary.classes.end(), [](const auto& row) {
        return row.tensor_class == TensorClass::kRoutedExperts && row.format == StoredFormat::kF32;
      });
  if (format == PoolFormat::kBF16 && !own.has_value() && !any_f32) format.reset();
  return format;
}

absl::StatusOr<ShardPool> ShardPoolOf(const Checkpoint& checkpoint, const ModelConfig& config,
                                      const CheckpointSummary& summary, const ShardSpec& shard,
                                      const std::string& pool_format) {
  ShardPool out;
  out.num_moe_layers = CountMlps(config, MlpKind::kMoe);
  if (out.num_moe_layers == 0) {
    return FailedPreconditionF("{}: no layer has routed experts, nothing for an expert host to do",
                               checkpoint.directory());
  }
  ASSIGN_OR_RETURN(out.geometry, MakeShardGeometry(config, shard));
  ASSIGN_OR_RETURN(const std::optional<PoolFormat> pack,
                   ResolvePoolFormat(checkpoint, config, summary, pool_format));
  if (!pack.has_value()) {
    out.format = MappedFormat(checkpoint, out.geometry);
    out.pool_bytes = MappedPoolBytes(checkpoint, config, out.geometry);
  } else {
    const PoolFormat format = *pack;
    const PackRequest request = {&checkpoint, &config, shard, format, ""};
    ASSIGN_OR_RETURN(const ExpertPackHeader header, WantedPackHeader(request));
    ASSIGN_OR_RETURN(out.geometry, MakeShardGeometry(config, shard, PoolFormatGroup(format)));
    const ExpertPackLayout layout = LayoutOf(header);
    out.pool_bytes = static_cast<uint64_t>(layout.file_bytes - layout.payload_offset);
    out.format = std::string(PoolFormatName(format));
    out.packed = true;
  }
  // Of num_experts_per_tok experts a layer, as many as the shard's share of them.
  out.bytes_per_token = out.pool_bytes / static_cast<uint64_t>(config.num_experts) *
                        static_cast<uint64_t>(config.num_experts_per_tok);
  return out;
}

absl::StatusOr<ShardPlan> PlanShard(const ShardPlanInput& input, std::vector<PlanChange>* changes) {
  ASSIGN_OR_RETURN(ShardPool pool, ShardPoolOf(*input.checkpoint, *input.config, *input.summary,
                                               input.shard, input.pool_format));
  ASSIGN_OR_RETURN(MemoryPlan memory, MemoryOf(input, pool));
  if (const absl::Status fits = memory.Check(); !fits.ok()) {
    const std::vector<PlanChange> fitting = ChangesThatFit(input, memory);
    if (changes != nullptr) *changes = fitting;
    return WithChanges(fits, fitting);
  }
  return ShardPlan{std::move(pool), std::move(memory)};
}

}  // namespace banyan
