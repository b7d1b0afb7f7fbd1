#include "services/expert/runtime/served_pool.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/memory/memory_plan.h"
#include "common/plan/shard_plan.h"
#include "common/pool/generated_expert.h"
#include "common/pool/pack_path.h"
#include "services/expert/kernels/kernel_table.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/runtime/cpu_executor.h"
#include "services/expert/runtime/expert_store.h"
#include "services/expert/runtime/packed_executor.h"

namespace banyan::expert {
namespace {

constexpr char kFastestTier[] = "amx";
// The kernels for weights in the checkpoint's precision, which also widen and narrow for the packed
// ones: at `tier`, or the fastest below it that they have.
absl::StatusOr<const FfnKernels*> PlainKernels(const std::string& tier,
                                               const CpuFeatures& features) {
  const bool amx = features.amx_int8 || features.amx_bf16;
  if ((tier == "amx" && !amx) || (tier == "avx512_vnni" && !features.avx512_vnni)) {
    return StatusF(
        absl::StatusCode::kUnimplemented, "cpu tier '{}': this CPU lacks {}", tier,
        tier == "amx" ? "AMX, or the operating system's permission to use it" : "AVX-512 VNNI");
  }
  const bool beyond = tier == "amx" || tier == "avx512_vnni";
  const KernelChoice choice = ChooseKernels(beyond ? "avx512" : tier, features);
  if (choice.kernels == nullptr) return absl::UnimplementedError(choice.error);
  return choice.kernels;
}

// What the shard takes, against what there is. The plan sees the same pool as this program.
absl::StatusOr<ShardPlan> PlanMemory(const ServedPoolOptions& options, const Checkpoint& checkpoint,
                                     const ModelConfig& config, const CheckpointSummary& summary,
                                     const PoolDescription& pool, bool generated) {
  ASSIGN_OR_RETURN(ShardPlan plan,
                   PlanShard({.checkpoint = &checkpoint,
                              .config = &config,
                              .summary = &summary,
                              .shard = options.shard,
                              .pool_format = options.pool_format,
                              .memory = options.memory.mode,
                              .weights_generated = generated,
                              .budget_bytes = options.memory.budget_bytes,
                              .total_bytes = TotalHostMemory(),
                              .available_bytes = AvailableHostMemory(),
                              .there_already_bytes = SegmentBytesThere(pool, options.memory)}));
  CHECK(plan.pool.pool_bytes == pool.pool_bytes && plan.pool.format == pool.format);
  return plan;
}

class CheckpointPool final : public ServedPool {
 public:
  CheckpointPool(std::unique_ptr<ExpertStore> store, MemoryPlan memory, const FfnKernels& kernels)
      : store_(std::move(store)), memory_plan_(std::move(memory)), kernels_(kernels) {}

  const PoolDescription& description() const override { return store_->description(); }
  const MemoryPlan& memory_plan() const override { return memory_plan_; }
  const char* tier() const override { return kernels_.name; }

  absl::StatusOr<PoolLoadReport> Load(WorkerPool& pool, PoolProgressFn progress) override {
    const uint64_t total = description().pool_bytes;
    RETURN_IF_ERROR(
        store_->Load(pool, [&](uint64_t done) { return progress(PoolPhase::kRead, done, total); }));
    return PoolLoadReport{};
  }

  std::vector<std::span<const std::byte>> ContiguousWeights() const override {
    return store_->ContiguousWeights();
  }

  absl::StatusOr<FileDescriptor> OpenFile() const override {
    return absl::FailedPreconditionError(
        "the pool is not in a file of its own but in those of the checkpoint: start the host with "
        "--pool_format int8, nf4 or int4, which makes a pack, and --pool_memory map or shm");
  }

  std::unique_ptr<GroupedExecutor> MakeExecutor(WorkerPool& pool) const override {
    return std::make_unique<CpuExecutor>(GroupedExecutor::Options{}, store_->table(), kernels_,
                                         pool);
  }

 private:
  const std::unique_ptr<ExpertStore> store_;
  const MemoryPlan memory_plan_;
  const FfnKernels& kernels_;
};

class PackedPool final : public ServedPool {
 public:
  PackedPool(const ServedPoolOptions& options, const FfnKernels& elementwise,
             const PackedKernelPair& kernels)
      : options_(options), elementwise_(elementwise), kernels_(kernels) {}

  absl::Status Open(OpenedModel opened, const CheckpointSummary& summary, PoolFormat format) {
    checkpoint_ = std::move(opened.checkpoint);
    config_ = std::move(opened.config);
    request_ = {checkpoint_.get(), &config_, options_.shard, format, options_.pool_dir};
    ASSIGN_OR_RETURN(const ExpertPackHeader header, WantedPackHeader(request_));
    ASSIGN_OR_RETURN(table_.geometry,
                     MakeShardGeometry(config_, options_.shard, PoolFormatGroup(format)));
    if (std::max(config_.hidden_size, table_.geometry.num_shard_width) > kMaxPackedInputs) {
      return StatusF(
          absl::StatusCode::kUnimplemented,
          "--pool_format {}: hidden_size {} and a width of {}, its kernels take at most {}",
          PoolFormatName(format), config_.hidden_size, table_.geometry.num_shard_width,
          kMaxPackedInputs);
    }
    const ExpertPackLayout layout = LayoutOf(header);
    table_.format = format;
    table_.expert_bytes = static_cast<uint64_t>(layout.expert_bytes);
    description_ = {options_.shard,
                    table_.geometry,
                    header.moe_layers,
                    std::string(PoolFormatName(format)),
                    static_cast<uint64_t>(layout.file_bytes - layout.payload_offset),
                    header.fingerprint};
    if (IsGeneratedPool(*checkpoint_, format)) RETURN_IF_ERROR(OpenGenerated(header));
    ASSIGN_OR_RETURN(ShardPlan plan, PlanMemory(options_, *checkpoint_, config_, summary,
                                                description_, generated_.has_value()));
    memory_plan_ = std::move(plan.memory);
    return absl::OkStatus();
  }

  const PoolDescription& description() const override { return description_; }
  const MemoryPlan& memory_plan() const override { return *memory_plan_; }
  const char* tier() const override { return kernels_.exact->tier; }

  absl::StatusOr<PoolLoadReport> Load(WorkerPool& pool, PoolProgressFn progress) override {
    if (generated_) return Generate(pool, progress);
    const auto pack_progress = [&](const PackProgress& p) {
      const PoolPhase phase = p.phase == PackProgress::Phase::kWait      ? PoolPhase::kWait
                              : p.phase == PackProgress::Phase::kConvert ? PoolPhase::kConvert
                                                                         : PoolPhase::kVerify;
      return progress(phase, p.bytes_done, p.bytes_total);
    };
    const auto ensure = [&](bool rebuild) {
      return EnsurePack(request_, pool, pack_progress, rebuild);
    };
    const auto verify = [&](const ExpertPack& pack) {
      return options_.verify_pool ? VerifyPack(pack, pool, pack_progress) : absl::OkStatus();
    };
    ASSIGN_OR_RETURN(PackResult result, EnsureSoundPack(ensure, verify));
    PoolLoadReport report;
    if (table_.format == PoolFormat::kBF16) {
      ASSIGN_OR_RETURN(report.rounded, FindRoundedExperts(*checkpoint_, config_));
    }
    report.pack_path = result.pack.path();
    report.rejected = result.rejected;
    report.built = result.built;
    ASSIGN_OR_RETURN(
        memory_,
        PoolMemory::Load(std::move(result.pack), options_.memory, pool, [&](uint64_t done) {
          return progress(PoolPhase::kRead, done, description_.pool_bytes);
        }));
    report.memory = options_.memory.mode;
    report.reused_segment = memory_->reused_segment();
    report.huge_page_bytes = memory_->huge_page_bytes();
    FillTable();
    return report;
  }

  std::vector<std::span<const std::byte>> ContiguousWeights() const override {
    return {{memory_->Expert(0), static_cast<size_t>(description_.pool_bytes)}};
  }

  absl::StatusOr<FileDescriptor> OpenFile() const override { return memory_->OpenFile(); }

  std::unique_ptr<GroupedExecutor> MakeExecutor(WorkerPool& pool) const override {
    return std::make_unique<PackedExecutor>(GroupedExecutor::Options{}, table_, kernels_,
                                            elementwise_, pool);
  }

 private:
  // Dummy weights are made in memory, shared or of the process; a pack of them is used where
  // somebody made one, but none is written: to generate them again is faster than to read them.
  absl::Status OpenGenerated(const ExpertPackHeader& header) {
    if (!options_.pool_dir.empty() && OpenPack(request_).ok()) return absl::OkStatus();
    if (options_.memory.mode == PoolMemoryMode::kMap) {
      options_.memory.mode = PoolMemoryMode::kAnonymous;
    }
    generated_ = header;
    return absl::OkStatus();
  }

  absl::StatusOr<PoolLoadReport> Generate(WorkerPool& pool, PoolProgressFn progress) {
    ASSIGN_OR_RETURN(memory_,
                     PoolMemory::Generate(
                         *generated_, options_.memory, pool,
                         [&](int64_t idx, std::byte* out) {
                           return GenerateExpert(*checkpoint_, config_, *generated_, idx, out);
                         },
                         [&](uint64_t done) {
                           return progress(PoolPhase::kRead, done, description_.pool_bytes);
                         }));
    FillTable();
    PoolLoadReport report;
    report.memory = options_.memory.mode;
    report.reused_segment = memory_->reused_segment();
    report.huge_page_bytes = memory_->huge_page_bytes();
    return report;
  }

  void FillTable() {
    const ExpertPackLayout& layout = memory_->layout();
    table_.layers.resize(static_cast<size_t>(table_.geometry.num_layers));
    int64_t idx = 0;
    for (const int32_t layer : description_.moe_layers) {
      std::vector<PackedExpert>& experts = table_.layers[static_cast<size_t>(layer)];
      for (int32_t e = 0; e < table_.geometry.num_shard_experts; ++e, ++idx) {
        const std::byte* const data = memory_->Expert(idx);
        experts.push_back({data, data + layout.gate_bytes, data + 2 * layout.gate_bytes});
      }
    }
  }

  ServedPoolOptions options_;
  const FfnKernels& elementwise_;
  const PackedKernelPair kernels_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
  PackRequest request_;
  std::optional<ExpertPackHeader> generated_;  // what is generated instead of packed
  PoolDescription description_;
  std::optional<MemoryPlan> memory_plan_;
  std::unique_ptr<PoolMemory> memory_;
  PackedTable table_;
};

absl::StatusOr<std::unique_ptr<ServedPool>> OpenPacked(
    const ServedPoolOptions& options, OpenedModel model, const CheckpointSummary& summary,
    PoolFormat format, const FfnKernels& elementwise, const CpuFeatures& features) {
  if (options.pool_dir.empty() && options.load_format == LoadFormat::kAuto) {
    return InvalidArgumentF("--pool_format {} needs --pool_dir: there is no home directory",
                            options.pool_format);
  }
  const char* const tier = options.cpu_tier == "auto" ? kFastestTier : options.cpu_tier.c_str();
  const PackedKernelPair kernels = {FindPackedKernels(format, Precision::kExact, tier, features),
                                    FindPackedKernels(format, Precision::kFast, tier, features)};
  if (kernels.exact == nullptr || kernels.fast == nullptr) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "--pool_format {}: no kernels for it at cpu tier {}", PoolFormatName(format),
                   tier);
  }
  auto pool = std::make_unique<PackedPool>(options, elementwise, kernels);
  RETURN_IF_ERROR(pool->Open(std::move(model), summary, format));
  return pool;
}

}  // namespace

absl::Status CheckCpuTier(const std::string& tier, const CpuFeatures& features) {
  return PlainKernels(tier, features).status();
}

absl::StatusOr<std::unique_ptr<ServedPool>> ServedPool::Open(const ServedPoolOptions& options,
                                                             const CpuFeatures& features) {
  ASSIGN_OR_RETURN(const FfnKernels* const kernels, PlainKernels(options.cpu_tier, features));
  ASSIGN_OR_RETURN(OpenedModel model, OpenModel(options.model_dir, options.load_format));
  options.on_plan();
  ASSIGN_OR_RETURN(const CheckpointSummary summary, CheckComplete(*model.checkpoint, model.config));
  ASSIGN_OR_RETURN(
      const std::optional<PoolFormat> format,
      ResolvePoolFormat(*model.checkpoint, model.config, summary, options.pool_format));
  if (format.has_value()) {
    return OpenPacked(options, std::move(model), summary, *format, *kernels, features);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertStore> store,
                   ExpertStore::FromModel(std::move(model), options.shard));
  if (options.memory.mode != PoolMemoryMode::kMap || options.memory.lock) {
    return FailedPreconditionF(
        "--pool_memory {}{}: is for packs; --pool_format {} serves the experts of {} where they "
        "are "
        "mapped",
        PoolMemoryName(options.memory.mode), options.memory.lock ? " --mlock" : "",
        options.pool_format, options.model_dir);
  }
  ASSIGN_OR_RETURN(ShardPlan plan,
                   PlanMemory(options, store->checkpoint(), store->config(), summary,
                              store->description(), options.load_format == LoadFormat::kDummy));
  return std::make_unique<CheckpointPool>(std::move(store), std::move(plan.memory), *kernels);
}

}  // namespace banyan::expert
