#include "services/trunk/server/loaded_trunk.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/byte_size.h"
#include "common/base/clock.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/version.h"
#include "common/config/generation_config.h"
#include "common/config/model_config.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"
#include "common/parallel/memory_bandwidth.h"
#include "common/parallel/page_reader.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/tensor_classes.h"
#include "common/plan/tensor_parallel.h"
#include "common/plan/trunk_plan.h"
#include "services/trunk/experts/expert_directory.h"
#include "services/trunk/experts/grpc_transport.h"
#include "services/trunk/model/decoder.h"
#include "services/trunk/model/parallel_decoder.h"
#include "services/trunk/model/trunk_pack_builder.h"
#include "services/trunk/server/prompt_pool.h"
#include "services/trunk/server/request_validation.h"
#include "services/trunk/server/trunk_backend.h"
#include "services/trunk/server/trunk_load_metrics.h"

namespace banyan::trunk {
namespace {

using common::v1::LoadProgress;

constexpr absl::Duration kWaitSlice = absl::Milliseconds(100);
constexpr absl::Duration kMisfitGrace = absl::Seconds(3);
constexpr absl::Duration kLogEvery = absl::Seconds(5);
constexpr size_t kFillBytes = 1 << 20;  // of generated weights, for one thread at a time
constexpr absl::Duration kBandwidthTime = absl::Milliseconds(50);

absl::Status Stopping() { return absl::CancelledError("stopped while loading"); }

// End tokens of both files, each once.
std::vector<int32_t> EndTokens(const ModelConfig& config, const GenerationConfig& generation) {
  std::vector<int32_t> ids;
  for (const auto* list : {&generation.eos_token_ids, &config.eos_token_ids}) {
    for (const int32_t id : *list) {
      if (id >= 0 && id < config.vocab_size && std::count(ids.begin(), ids.end(), id) == 0) {
        ids.push_back(id);
      }
    }
  }
  return ids;
}

ExpectedModel Expect(const ModelConfig& config, const Checkpoint& checkpoint, int32_t max_rows) {
  ExpectedModel expected;
  expected.fingerprint = checkpoint.fingerprint();
  expected.num_layers = config.num_hidden_layers;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.mlps[static_cast<size_t>(layer)] == MlpKind::kMoe) {
      expected.moe_layers.push_back(layer);
    }
  }
  expected.num_experts = config.num_experts;
  expected.hidden_size = config.hidden_size;
  expected.moe_intermediate_size = config.moe_intermediate_size;
  expected.num_experts_per_tok = config.num_experts_per_tok;
  expected.max_rows = max_rows;
  return expected;
}

// Waits for the one token that the engine computes before clients may.
class WarmUp final : public RequestListener {
 public:
  void OnStarted(std::vector<TokenLogprobs> /*prompt_logprobs*/) override {}
  bool OnToken(int32_t /*token_id*/, bool /*is_stop_token*/,
               const TokenLogprobs* /*logprobs*/) override {
    return false;
  }
  void OnFinished(const FinishInfo& info) override {
    status_ = info.status;
    done_.Notify();
  }
  absl::Status Await() {
    done_.WaitForNotification();
    return status_;
  }

 private:
  absl::Notification done_;
  absl::Status status_;
};

}  // namespace

class LoadedTrunk::Impl {
 public:
  Impl(const TrunkOptions& options, std::function<bool()> stopping,
       std::function<void(const absl::Status&)> on_fault, LoadTracker* tracker,
       MetricsRegistry* metrics)
      : options_(options),
        stopping_(std::move(stopping)),
        on_fault_(std::move(on_fault)),
        tracker_(tracker),
        metrics_(metrics),
        load_metrics_(*metrics) {}

  absl::Status Load() {
    const absl::Time start = absl::Now();
    RETURN_IF_ERROR(ReadHeaders());
    RETURN_IF_ERROR(Plan());
    // Expert hosts are looked for while the weights are read.
    ExpertDirectory::Options directory;
    directory.cluster = options_.cluster;
    directory.model = ExpectedHere();
    directory.shared_memory = options_.expert_shared_memory;
    ASSIGN_OR_RETURN(directory_, ExpertDirectory::Create(std::move(directory), metrics_));
    transport_.emplace(GrpcTransport::Options{}, directory_.get(), metrics_);
    RETURN_IF_ERROR(ReadWeights());
    RETURN_IF_ERROR(AwaitExperts());
    RETURN_IF_ERROR(MapPromptExperts());
    RETURN_IF_ERROR(StartEngine());
    RETURN_IF_ERROR(Warm());
    load_metrics_.seconds.Set(absl::ToDoubleSeconds(absl::Now() - start));
    return absl::OkStatus();
  }

  const ServingModel& model() const { return model_; }
  absl::Status ExpertsReady() const { return transport_->Ready(); }

 private:
  absl::Status ReadHeaders() {
    tracker_->SetPhase(LoadProgress::HEADERS, options_.model_dir);
    ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_dir));
    ASSIGN_OR_RETURN(model_.facts.defaults, LoadGenerationConfig(options_.model_dir));
    ASSIGN_OR_RETURN(checkpoint_,
                     OpenCheckpoint(options_.model_dir, config_, options_.load_format));
    absl::StatusOr<std::unique_ptr<TextCodec>> codec = TextCodec::Load(options_.model_dir);
    if (codec.ok()) {
      codec_ = *std::move(codec);
    } else if (absl::IsNotFound(codec.status())) {
      LogWarning("no_tokenizer", {{"model", options_.model_dir}, {"served", "token_ids"}});
    } else {
      return codec.status();
    }
    return stopping_() ? Stopping() : absl::OkStatus();
  }

  absl::Status Plan() {
    tracker_->SetPhase(LoadProgress::PLAN);
    ASSIGN_OR_RETURN(const CheckpointSummary summary, CheckComplete(*checkpoint_, config_));
    const int32_t parts = options_.tensor_parallel;
    RETURN_IF_ERROR(CheckTensorParallel(config_, parts));
    const int num_threads = options_.num_threads > 0 ? options_.num_threads : UsableCpuCount();
    pool_.emplace(WorkerPool::Options{.num_threads = num_threads});
    ASSIGN_OR_RETURN(backends_, CreateBackends(options_, &*pool_, metrics_));
    TrunkPlanInput input;
    input.tensor_parallel = parts;
    input.weights = TrunkWeightSizesOf(*checkpoint_, config_, TrunkFormat::kBf16, parts);
    input.int8_weights = TrunkWeightSizesOf(*checkpoint_, config_, TrunkFormat::kInt8, parts);
    input.index_bytes = TensorIndexBytes(*checkpoint_);
    input.weights_generated = options_.load_format == LoadFormat::kDummy;
    input.max_context_tokens = options_.max_context_tokens;
    input.max_sequences = options_.max_sequences;
    input.max_batch_tokens = options_.max_batch_tokens;
    input.halved_rows = options_.halved_rows;
    input.prompt_experts = options_.prompt_experts;
    const std::optional<uint64_t> vram = backends_.FreeDeviceBytes();
    input.on_gpu = vram.has_value();
    input.num_threads = ThreadsOfPart(num_threads, parts);
    input.budget_bytes = vram ? options_.vram_budget_bytes : options_.host_budget_bytes;
    input.available_bytes = vram ? *vram : AvailableHostMemory();
    input.trunk_format = options_.trunk_format;
    input.kv_dtype = options_.kv_dtype.value_or(options_.use_cuda ? DType::kBF16 : DType::kF32);
    input.expert_activations = options_.expert_activations;
    ASSIGN_OR_RETURN(plan_, PlanTrunk(config_, input));
    const TrunkPlan& plan = *plan_;
    if (plan.gpu_host) {
      const uint64_t available = AvailableHostMemory();
      const bool given = options_.host_budget_bytes > 0;
      const uint64_t budget = given ? options_.host_budget_bytes : available;
      const MemoryPlan host =
          plan.gpu_host->WithBudget(budget, given ? "--host_budget" : "available");
      if (budget > 0) RETURN_IF_ERROR(host.Check());
    }
    decoder_options_ = plan.decoder;
    LogInfo("plan", {{"model", config_.model_type},
                     {"layers", config_.num_hidden_layers},
                     {"trunk_tensors", summary.num_trunk_tensors},
                     {"expert_tensors", summary.num_expert_tensors},
                     {"mtp_tensors_unused", summary.num_mtp_tensors},
                     {"backend", BackendKind()},
                     {"tier", backends_.first().name()},
                     {"tensor_parallel", parts},
                     {"trunk_format", TrunkFormatName(plan.decoder.trunk_format)},
                     {"kv_format", FloatFormatName(plan.decoder.kv_dtype)},
                     {"expert_activations", FloatFormatName(plan.decoder.expert_activations)},
                     {"threads", num_threads},
                     {"max_context_tokens", plan.decoder.max_context_tokens},
                     {"max_sequences", plan.max_sequences},
                     {"max_batch_tokens", plan.max_batch_tokens},
                     {"max_mixed_tokens", plan.max_mixed_tokens},
                     {"halved_rows", plan.decoder.halved_rows},
                     {"pages", plan.decoder.num_pages},
                     {"fingerprint", checkpoint_->fingerprint()}});
    LogMemoryPlan(plan.memory);
    load_metrics_.planned_bytes.Set(static_cast<double>(plan.memory.total_bytes()));
    return stopping_() ? Stopping() : absl::OkStatus();
  }

  // The pack of matrices that are not used as they are stored, made where there is none.
  absl::Status OpenPack() {
    if (options_.load_format == LoadFormat::kDummy) return absl::OkStatus();
    const TrunkPackRequest request = {checkpoint_.get(), &config_, decoder_options_.trunk_format,
                                      options_.pool_dir};
    ASSIGN_OR_RETURN(const TrunkPackHeader wanted, WantedTrunkPackHeader(request));
    if (wanted.matrices.empty()) return absl::OkStatus();
    if (options_.pool_dir.empty()) {
      LogInfo("trunk_not_packed", {{"matrices", wanted.matrices.size()},
                                   {"reason", "no --pool_dir; converted at each start"}});
      return absl::OkStatus();
    }
    std::optional<PackProgress::Phase> shown;
    const auto progress = [&](const PackProgress& p) {
      if (shown != p.phase) {
        shown = p.phase;
        switch (p.phase) {
          case PackProgress::Phase::kWait:
            tracker_->SetPhase(LoadProgress::WAIT, "another process packs this trunk");
            break;
          case PackProgress::Phase::kConvert:
            tracker_->SetPhase(LoadProgress::CONVERT);
            break;
          case PackProgress::Phase::kVerify:
            tracker_->SetPhase(LoadProgress::VERIFY);
            break;
        }
      }
      tracker_->SetBytes(p.bytes_done, p.bytes_total);
      return !stopping_();
    };
    const auto ensure = [&](bool rebuild) {
      return EnsureTrunkPack(request, wanted, *pool_, progress, rebuild);
    };
    const auto verify = [&](const TrunkPack& pack) {
      return options_.verify_pool ? VerifyTrunkPack(pack, *pool_, progress) : absl::OkStatus();
    };
    ASSIGN_OR_RETURN(TrunkPackResult result, EnsureSoundPack(ensure, verify));
    const std::string& path = result.pack.path();
    if (!result.rejected.ok()) {
      load_metrics_.packs_rejected.Increment();
      LogWarning("pack_rejected", {{"reason", result.rejected}, {"pack", path}});
    }
    if (result.built) {
      LogPacked(path, *result.built);
    } else {
      LogInfo("pack_used",
              {{"pack", path},
               {"matrices", result.pack.header().matrices.size()},
               {"pack_bytes", static_cast<uint64_t>(result.pack.layout().file_bytes)}});
    }
    pack_.emplace(std::move(result.pack));
    return absl::OkStatus();
  }

  // Brings the trunk's tensors into the page cache, so that no step waits for the disk.
  absl::Status ReadWeights() {
    RETURN_IF_ERROR(checkpoint_->CheckFilesUnchanged());
    if (absl::Status packed = OpenPack(); !packed.ok()) {
      return absl::IsCancelled(packed) ? Stopping() : packed;
    }
    tracker_->SetPhase(LoadProgress::READ);
    std::vector<std::span<const std::byte>> tensors;
    for (const TensorSpec& spec : TrunkTensors(config_)) {
      if (pack_ && pack_->Find(spec.name) != nullptr) continue;
      ASSIGN_OR_RETURN(const StoredMatrix stored,
                       FindStoredMatrix(*checkpoint_, spec.name, spec.shape));
      tensors.push_back({stored.weight.data, stored.weight.size_bytes()});
      for (const Checkpoint::Entry* companion : stored.companions()) {
        tensors.push_back({companion->view.data, companion->view.size_bytes()});
      }
    }
    if (pack_) {
      const auto ranges = pack_->Ranges();
      tensors.insert(tensors.end(), ranges.begin(), ranges.end());
    }
    uint64_t total = 0;
    for (const std::span<const std::byte> bytes : tensors) total += bytes.size();
    load_metrics_.model_bytes.Set(static_cast<double>(total));
    uint64_t filled = 0;
    const auto go_on = [&](uint64_t done) {
      ReportBytes(done, total);
      return !stopping_();
    };
    if (options_.load_format == LoadFormat::kDummy) {
      for (const std::span<const std::byte> bytes : tensors) {
        FillTensor(bytes);
        filled += bytes.size();
        if (!go_on(filled)) return Stopping();
      }
    }
    // Pages that hold generated values are there already.
    if (absl::Status read = ReadPages(tensors, *pool_,
                                      [&](uint64_t done) { return go_on(std::max(done, filled)); });
        !read.ok()) {
      return absl::IsCancelled(read) ? Stopping() : read;
    }
    load_metrics_.bandwidth.Set(MeasureReadBandwidth(*pool_, tensors, kBandwidthTime));
    if (options_.tensor_parallel > 1) {
      ASSIGN_OR_RETURN(
          decoder_, ParallelDecoder::Create(config_, decoder_options_, *checkpoint_,
                                            backends_.ranks, backends_.threads.get(), &*transport_,
                                            /*observer=*/nullptr, pack_ ? &*pack_ : nullptr));
    } else {
      ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder,
                       Decoder::Create(config_, decoder_options_, *checkpoint_,
                                       backends_.ranks[0].get(), &*transport_,
                                       /*observer=*/nullptr, /*rank=*/{},
                                       {.pack = pack_ ? &*pack_ : nullptr, .pool = &*pool_}));
      prompt_decoder_ = decoder.get();
      decoder_ = std::move(decoder);
    }
    return absl::OkStatus();
  }

  // All threads make the values of a tensor that has no file.
  void FillTensor(std::span<const std::byte> bytes) {
    const size_t num_parts = (bytes.size() + kFillBytes - 1) / kFillBytes;
    pool_->ParallelFor(static_cast<int64_t>(num_parts), [&](int64_t part, int) {
      const size_t first = static_cast<size_t>(part) * kFillBytes;
      checkpoint_->Fill(bytes.subspan(first, std::min(kFillBytes, bytes.size() - first)));
    });
  }

  const char* BackendKind() const { return options_.use_cuda ? "cuda" : "cpu"; }

  void ReportBytes(uint64_t done, uint64_t total) {
    tracker_->SetBytes(done, total);
    load_metrics_.loaded_bytes.Set(static_cast<double>(done));
  }

  absl::Status AwaitExperts() {
    absl::Time misfit_since = absl::InfiniteFuture();
    absl::Time next_log = absl::InfinitePast();
    while (true) {
      absl::Status status = transport_->WaitReady(absl::Now() + kWaitSlice);
      if (status.ok()) return absl::OkStatus();
      if (stopping_()) return Stopping();
      const absl::Time now = absl::Now();
      if (!absl::IsFailedPrecondition(status)) {
        misfit_since = absl::InfiniteFuture();
      } else if (misfit_since == absl::InfiniteFuture()) {
        misfit_since = now;
      } else if (now - misfit_since >= kMisfitGrace) {
        return status;
      }
      tracker_->SetPhase(LoadProgress::WAIT, std::string(status.message()));
      if (now < next_log) continue;
      next_log = now + kLogEvery;
      LogInfo("waiting_for_experts", {{"detail", status.message()}});
    }
  }

  ExpectedModel ExpectedHere() const {
    return Expect(config_, *checkpoint_, MaxCallRows(decoder_options_));
  }

  // The experts that this trunk computes for long prompts. Where that was our choice, a pool that
  // cannot be had is no fault.
  absl::Status MapPromptExperts() {
    if (!decoder_options_.prompt_experts) {
      if (options_.prompt_experts.any()) {
        LogInfo("no_prompt_experts",
                {{"reason", "too little GPU memory: steps would be short, and each reads them"}});
      }
      return absl::OkStatus();
    }
    const absl::Time begin = absl::Now();
    const absl::Status borrowed =
        BorrowPromptPool(*directory_, ExpectedHere(), config_, options_.prompt_experts,
                         options_.long_prompt_tokens, backends_.ranks[0].get(), &prompt_pool_);
    PromptExpertPool& experts = prompt_pool_.experts;
    if (!borrowed.ok()) {
      if (!options_.prompt_experts.chosen) return Annotate(borrowed, "--prompt_experts");
      LogInfo("no_prompt_experts", {{"reason", borrowed.message()}});
      return absl::OkStatus();
    }
    LogInfo("prompt_experts",
            {{"experts", fmt::format("{}", fmt::join(experts.own_experts, ","))},
             {"of", config_.num_experts},
             {"pool_format", PoolFormatName(experts.format)},
             {"slices", experts.slices.size()},
             {"gb_per_second", fmt::format("{:.1f}", prompt_pool_.bytes_per_second / 1e9)},
             {"seconds", absl::ToDoubleSeconds(absl::Now() - begin)}});
    load_metrics_.prompt_experts.Set(static_cast<double>(experts.own_experts.back()));
    prompt_decoder_->ComputePromptExperts(std::move(experts));
    return absl::OkStatus();
  }

  absl::Status StartEngine() {
    Engine::Options engine;
    engine.max_batch_tokens = plan_->max_batch_tokens;
    engine.max_mixed_tokens = plan_->max_mixed_tokens;
    engine.max_sequences = plan_->max_sequences;

    engine.max_queued_requests = options_.max_queued_requests;
    engine.max_context_tokens = decoder_options_.max_context_tokens;
    engine.sampled_vocab_size =
        codec_ == nullptr ? config_.vocab_size
                          : std::min(config_.vocab_size, codec_->tokenizer().vocab_size());
    engine.expert_wait = options_.expert_wait;
    engine.on_fault = on_fault_;
    ASSIGN_OR_RETURN(engine_,
                     Engine::Create(engine, decoder_.get(), &*transport_, metrics_, &clock_));

    ModelFacts& facts = model_.facts;
    facts.vocab_size = config_.vocab_size;
    facts.max_context_tokens = engine_->GetSnapshot().max_context_tokens;
    facts.eos_token_ids = EndTokens(config_, facts.defaults);
    facts.codec = codec_.get();
    // Defaults that no request could give would make every request fail.
    if (absl::Status status = ResolveSampling({}, facts).status(); !status.ok()) {
      return Annotate(status, fmt::format("{}/generation_config.json", options_.model_dir));
    }
    FillInfo();
    model_.engine = engine_.get();
    model_.add_shards = [this](inference::v1::GetModelInfoResponse& info) { AddShards(info); };
    return absl::OkStatus();
  }

  void FillInfo() {
    inference::v1::GetModelInfoResponse& info = model_.info;
    info.set_model_type(config_.model_type);
    info.set_fingerprint(checkpoint_->fingerprint());
    info.set_server_version(std::string(Version()));
    info.set_num_hidden_layers(config_.num_hidden_layers);
    info.set_hidden_size(config_.hidden_size);
    info.set_vocab_size(config_.vocab_size);
    info.set_num_experts(config_.num_experts);
    info.set_num_experts_per_tok(config_.num_experts_per_tok);
    info.set_max_context_tokens(model_.facts.max_context_tokens);
    info.set_max_sequences(plan_->max_sequences);
    info.set_max_batch_tokens(plan_->max_batch_tokens);
    info.set_has_tokenizer(codec_ != nullptr);
    info.set_has_chat_template(codec_ != nullptr && codec_->has_chat_template());
    info.set_backend(BackendKind());
    info.set_expert_activations(std::string(FloatFormatName(decoder_options_.expert_activations)));
    metrics_
        ->Gauge("banyan_trunk_model_info", "1; the labels say which model runs and how.",
                {{"model_type", config_.model_type},
                 {"fingerprint", checkpoint_->fingerprint()},
                 {"backend", BackendKind()},
                 {"tier", std::string(backends_.first().name())}})
        .Set(1);
    for (const int32_t id : model_.facts.eos_token_ids) info.add_eos_token_ids(id);
    *info.mutable_default_sampling() = DefaultSampling(model_.facts);
  }

  void AddShards(inference::v1::GetModelInfoResponse& info) const {
    for (const ExpertDirectory::ShardInfo& shard : directory_->Shards()) {
      auto* const out = info.add_shards();
      out->set_index(shard.index);
      for (const ExpertDirectory::ReplicaInfo& replica : shard.replicas) {
        out->add_replicas(replica.address);
        out->add_states(replica.state);
      }
      out->set_split(shard.split);
      out->set_pool_format(shard.pool_format);
      out->set_kernel_tier(shard.kernel_tier);
      out->set_pool_bytes(shard.pool_bytes);
    }
  }

  // One token through every layer and every shard. A shard lost meanwhile is waited for again.
  absl::Status Warm() {
    while (true) {
      tracker_->SetPhase(LoadProgress::WARM);
      Request request;
      request.request_id = "warm-up";
      request.prompt_ids = {0, 1 % config_.vocab_size};
      request.sampling.temperature = 0;
      request.max_new_tokens = 1;
      const auto listener = std::make_shared<WarmUp>();
      RETURN_IF_ERROR(engine_->Submit(std::move(request), listener).status());
      const absl::Status status = listener->Await();
      if (status.ok()) return absl::OkStatus();
      if (stopping_()) return Stopping();
      if (!absl::IsUnavailable(status)) return Annotate(status, "warm-up");
      RETURN_IF_ERROR(AwaitExperts());
    }
  }

  const TrunkOptions options_;
  const std::function<bool()> stopping_;
  const std::function<void(const absl::Status&)> on_fault_;
  LoadTracker* const tracker_;
  MetricsRegistry* const metrics_;
  TrunkLoadMetrics load_metrics_;
  SystemClock clock_;

  // In the order of making; taken down in the opposite one.
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<TextCodec> codec_;
  std::optional<TrunkPack> pack_;
  std::optional<WorkerPool> pool_;
  PromptPool prompt_pool_;  // mapped by the first of the backends
  TrunkBackends backends_;
  std::optional<TrunkPlan> plan_;
  DecoderOptions decoder_options_;
  std::unique_ptr<ExpertDirectory> directory_;
  std::optional<GrpcTransport> transport_;
  std::unique_ptr<ForwardPass> decoder_;
  Decoder* prompt_decoder_ = nullptr;  // the same, where one device has the model alone
  std::unique_ptr<Engine> engine_;
  ServingModel model_;
};

absl::StatusOr<std::unique_ptr<LoadedTrunk>> LoadedTrunk::Load(
    const TrunkOptions& options, std::function<bool()> stopping,
    std::function<void(const absl::Status&)> on_fault, LoadTracker* tracker,
    MetricsRegistry* metrics) {
  auto impl =
      std::make_unique<Impl>(options, std::move(stopping), std::move(on_fault), tracker, metrics);
  RETURN_IF_ERROR(impl->Load());
  return std::unique_ptr<LoadedTrunk>(new LoadedTrunk(std::move(impl)));
}

LoadedTrunk::LoadedTrunk(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadedTrunk::~LoadedTrunk() = default;
const ServingModel& LoadedTrunk::model() const { return impl_->model(); }
absl::Status LoadedTrunk::ExpertsReady() const { return impl_->ExpertsReady(); }

}  // namespace banyan::trunk
