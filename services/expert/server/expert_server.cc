#include "services/expert/server/expert_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/cpu/cpu_features.h"
#include "common/memory/memory_plan.h"
#include "common/metrics/http_exposer.h"
#include "common/metrics/registry.h"
#include "common/parallel/memory_bandwidth.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/rpc/channel_settings.h"
#include "common/rpc/health_service.h"
#include "common/rpc/listen_address.h"
#include "common/rpc/load_phase_gauge.h"
#include "common/rpc/load_tracker.h"
#include "common/rpc/load_watchers.h"
#include "common/rpc/memory_inbox.h"
#include "common/rpc/server_threads.h"
#include "services/expert/runtime/served_pool.h"
#include "services/expert/server/expert_service.h"
#include "services/expert/server/forward_stream.h"
#include "services/expert/server/metered_executor.h"
#include "services/expert/server/pool_lender.h"

namespace banyan::expert {
namespace {

using common::v1::LoadProgress;

// What clients of a stopping host get: the answers under way and the end of their streams, then a
// moment to close their connections.
constexpr absl::Duration kStopGrace = absl::Seconds(10);
constexpr absl::Duration kCloseGrace = absl::Milliseconds(200);
// How long a host whose load failed waits for WatchLoad streams to say so.
constexpr absl::Duration kFailureGrace = absl::Seconds(1);
constexpr absl::Duration kBandwidthTime = absl::Milliseconds(50);

struct LoadMetrics {
  explicit LoadMetrics(MetricsRegistry& metrics)
      : pool_bytes(metrics.Gauge("banyan_expert_pool_bytes", "Bytes of weights of this shard.")),
        planned_bytes(metrics.Gauge("banyan_expert_planned_bytes",
                                    "Memory that the plan made at the start counts with.")),
        loaded_bytes(metrics.Gauge("banyan_expert_loaded_bytes",
                                   "Bytes of this shard brought into memory so far.")),
        seconds(metrics.Gauge("banyan_expert_load_seconds",
                              "How long the load took; 0 until it is over.")),
        bandwidth(metrics.Gauge(
            "banyan_expert_memory_bandwidth_bytes_per_second",
            "Speed of reading this shard's weights with all threads, measured at the end of the "
            "load; a pool that fits the CPU's caches is read from there.")),
        huge_page_bytes(metrics.Gauge("banyan_expert_huge_page_bytes",
                                      "Bytes of a pack's weights that lie on huge pages.")),
        packs_rejected(metrics.Counter(
            "banyan_expert_packs_rejected_total",
            "Packs that were found damaged or older than the checkpoint, and were packed again.")),
        ready(metrics.Gauge("banyan_expert_ready", "1 while calls are taken, else 0.")) {}
  prometheus::Gauge& pool_bytes;
  prometheus::Gauge& planned_bytes;
  prometheus::Gauge& loaded_bytes;
  prometheus::Gauge& seconds;
  prometheus::Gauge& bandwidth;
  prometheus::Gauge& huge_page_bytes;
  prometheus::Counter& packs_rejected;
  prometheus::Gauge& ready;
};

}  // namespace

class ExpertServer::Impl {
 public:
  explicit Impl(const ExpertOptions& options)
      : options_(options),
        load_metrics_(metrics_),
        watchers_(tracker_),
        service_(
            &watchers_, [this](std::string_view socket_name) { return lender_->Lend(socket_name); },
            [this] {
              LogInfo("draining");
              Drain();
            }) {}

  ~Impl() { Stop(absl::Now()); }

  absl::Status Listen() {
    if (!options_.metrics_listen.empty()) {
      ASSIGN_OR_RETURN(exposer_,
                       HttpExposer::Create(options_.metrics_listen, "banyan-expert", &metrics_));
    }
    RETURN_IF_ERROR(CheckUnixSocketFree(options_.listen));
    grpc::EnableDefaultHealthCheckService(false);  // health_ is the one
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    ApplyExpertServerSettings(builder);
    LimitHandlerThreads(builder);
    int port = -1;
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    builder.RegisterService(&health_);
    MakeInbox();
    lender_.emplace(inbox_.get());
    forward_.emplace(ForwardStreamServer::Options{.inbox = inbox_.get()}, builder, metrics_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return ExplainListenFailure(options_.listen);
    forward_->Start(
        [this](grpc::ServerContext* context, ForwardStreamServer::RawStream* stream,
               grpc::CompletionQueue* queue, grpc::ServerCompletionQueue* notification,
               void* tag) { service_.RequestForward(context, stream, queue, notification, tag); });
    address_ = options_.listen;
    if (address_.compare(0, 5, "unix:") != 0) {
      address_ = fmt::format("{}:{}", address_.substr(0, address_.rfind(':')), port);
    }
    return absl::OkStatus();
  }

  // Without one calls come as frames, and the pool is not lent.
  void MakeInbox() {
    const std::optional<std::string> path = MemoryInboxPath(options_.listen);
    if (!path.has_value()) return;
    absl::StatusOr<std::unique_ptr<MemoryInbox>> inbox = MemoryInbox::Create(*path);
    if (inbox.ok()) {
      inbox_ = *std::move(inbox);
    } else {
      LogWarning("memory_inbox_not_made", {{"reason", inbox.status().message()}});
    }
  }

  absl::Status Run(StopSignals& stop) {
    absl::Status loaded;
    std::thread loader([&] {
      loaded = Load();
      if (loaded.ok()) return;
      if (!stopping_) {
        tracker_.SetPhase(LoadProgress::FAILED, std::string(loaded.message()));
        watchers_.WaitUntilTold(absl::Now() + kFailureGrace);
      }
      stop.Notify();
    });
    const int signal = stop.Wait();
    stopping_ = true;
    loader.join();
    stop.RestoreDefault();
    if (signal != 0) {
      LogInfo("draining", {{"signal", signal}});
    } else if (!loaded.ok()) {
      return loaded;
    }
    Stop(absl::Now() + kStopGrace);
    LogInfo("stopped");
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }

 private:
  absl::Status Load() {
    const absl::Time start = absl::Now();
    tracker_.SetPhase(LoadProgress::HEADERS, options_.model_dir);
    const CpuFeatures features = ReadCpuFeatures();
    ASSIGN_OR_RETURN(
        served_, ServedPool::Open({.model_dir = options_.model_dir,
                                   .shard = options_.shard,
                                   .load_format = options_.load_format,
                                   .pool_format = options_.pool_format,
                                   .pool_dir = options_.pool_dir,
                                   .verify_pool = options_.verify_pool,
                                   .memory = options_.pool_memory,
                                   .cpu_tier = options_.cpu_tier,
                                   .on_plan = [this] { tracker_.SetPhase(LoadProgress::PLAN); }},
                                  features));
    const PoolDescription& pool = served_->description();
    load_metrics_.pool_bytes.Set(static_cast<double>(pool.pool_bytes));
    LogPlan(pool, served_->memory_plan());
    load_metrics_.planned_bytes.Set(static_cast<double>(served_->memory_plan().total_bytes()));
    service_.SetPool(pool, served_->tier());
    const int num_threads = options_.num_threads > 0 ? options_.num_threads : UsableCpuCount();
    pool_.emplace(WorkerPool::Options{.num_threads = num_threads});
    ASSIGN_OR_RETURN(const PoolLoadReport report, LoadPool());
    tracker_.SetPhase(LoadProgress::WARM);
    load_metrics_.bandwidth.Set(
        MeasureReadBandwidth(*pool_, served_->ContiguousWeights(), kBandwidthTime));
    executor_ = served_->MakeExecutor(*pool_);
    metered_.emplace(*executor_, metrics_);
    forward_->SetExecutor(&*metered_);
    lender_->SetPool([this] { return served_->OpenFile(); });

    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    load_metrics_.seconds.Set(seconds);
    const ShardGeometry& geometry = pool.geometry;
    const std::string split(ShardSplitName(options_.shard.split));
    const std::string memory(PoolMemoryName(report.memory));
    metrics_
        .Gauge("banyan_expert_shard_info", "1; the labels say which part of the model is here.",
               {{"shard", std::to_string(options_.shard.index)},
                {"num_shards", std::to_string(options_.shard.num_shards)},
                {"split", split},
                {"pool_format", pool.format},
                {"memory", memory},
                {"tier", served_->tier()},
                {"fingerprint", pool.fingerprint}})
        .Set(1);
    LogInfo("ready", {{"shard", options_.shard.index},
                      {"num_shards", options_.shard.num_shards},
                      {"split", split},
                      {"first_expert", geometry.first_expert},
                      {"num_experts", geometry.num_shard_experts},
                      {"first_width", geometry.first_width},
                      {"width", geometry.num_shard_width},
                      {"moe_layers", pool.moe_layers.size()},
                      {"pool_format", pool.format},
                      {"pool_bytes", pool.pool_bytes},
                      {"pack", LogValue::NonEmpty(report.pack_path)},
                      {"memory", memory},
                      {"huge_page_bytes", report.huge_page_bytes},
                      {"segment_reused", report.reused_segment},
                      {"tier", served_->tier()},
                      {"threads", num_threads},
                      {"seconds", seconds},
                      {"fingerprint", pool.fingerprint}});
    absl::MutexLock lock(&serving_mutex_);
    if (!draining_) {
      health_.SetServing(true);
      load_metrics_.ready.Set(1);
    }
    tracker_.SetPhase(LoadProgress::READY);
    return absl::OkStatus();
  }

  void LogPlan(const PoolDescription& pool, const MemoryPlan& plan) const {
    LogInfo("plan", {{"shard", options_.shard.index},
                     {"num_shards", options_.shard.num_shards},
                     {"split", std::string(ShardSplitName(options_.shard.split))},
                     {"pool_format", pool.format},
                     {"num_experts", pool.geometry.num_shard_experts},
                     {"width", pool.geometry.num_shard_width},
                     {"fingerprint", pool.fingerprint}});
    LogMemoryPlan(plan);
  }

  absl::StatusOr<PoolLoadReport> LoadPool() {
    std::optional<PoolPhase> shown;
    const auto progress = [&](PoolPhase phase, uint64_t done, uint64_t total) {
      if (shown != phase) {
        shown = phase;
        switch (phase) {
          case PoolPhase::kWait:
            tracker_.SetPhase(LoadProgress::WAIT, "another process packs this shard");
            break;
          case PoolPhase::kConvert:
            tracker_.SetPhase(LoadProgress::CONVERT);
            break;
          case PoolPhase::kVerify:
            tracker_.SetPhase(LoadProgress::VERIFY);
            break;
          case PoolPhase::kRead:
            tracker_.SetPhase(LoadProgress::READ);
            break;
        }
      }
      tracker_.SetBytes(done, total);
      if (phase == PoolPhase::kRead) load_metrics_.loaded_bytes.Set(static_cast<double>(done));
      return !stopping_.load();
    };
    ASSIGN_OR_RETURN(const PoolLoadReport report, served_->Load(*pool_, progress));
    load_metrics_.huge_page_bytes.Set(static_cast<double>(report.huge_page_bytes));
    if (!report.rejected.ok()) {
      load_metrics_.packs_rejected.Increment();
      LogWarning("pack_rejected", {{"reason", report.rejected}, {"pack", report.pack_path}});
    }
    if (report.rounded) {
      LogWarning("experts_rounded", {{"tensor", report.rounded->tensor},
                                     {"values", DTypeName(report.rounded->dtype)},
                                     {"pool_format", served_->description().format},
                                     {"largest_relative_error", kBF16RoundingError}});
    }
    if (report.built) {
      LogPacked(report.pack_path, *report.built);
    }
    if (report.memory != PoolMemoryMode::kMap &&
        report.huge_page_bytes < served_->description().pool_bytes / 2) {
      LogWarning("no_huge_pages",
                 {{"huge_page_bytes", report.huge_page_bytes},
                  {"pool_bytes", served_->description().pool_bytes},
                  {"hint", report.memory == PoolMemoryMode::kShm
                               ? "mount -o remount,huge=advise /dev/shm"
                               : "/sys/kernel/mm/transparent_hugepage/enabled: madvise"}});
    }
    return report;
  }

  // Of the Drain RPC and of a stop; any thread, any number of times.
  void Drain() {
    absl::MutexLock lock(&serving_mutex_);
    if (std::exchange(draining_, true)) return;
    health_.SetServing(false);
    load_metrics_.ready.Set(0);
    forward_->Drain();
  }

  void Stop(absl::Time deadline) {
    if (server_ == nullptr || std::exchange(stopped_, true)) return;
    stopping_ = true;
    Drain();
    watchers_.Stop();
    health_.Stop();
    forward_->WaitUntilDrained(deadline);
    server_->Shutdown(absl::ToChronoTime(absl::Now() + kCloseGrace));
    forward_->Stop();
    inbox_.reset();
    RemoveUnixSocket(address_);
  }

  const ExpertOptions options_;
  MetricsRegistry metrics_;
  LoadMetrics load_metrics_;
  LoadPhaseGauge load_phase_{"expert", &metrics_};
  LoadTracker tracker_{[this](LoadProgress::Phase phase) { load_phase_.Set(phase); },
                       [this](LoadProgress::Phase phase, uint64_t done, uint64_t total) {
                         load_phase_.SetBytes(phase, done, total);
                       }};
  LoadWatchers watchers_;
  ExpertService service_;
  HealthService health_{{v1::Experts::service_full_name()}};
  std::unique_ptr<HttpExposer> exposer_;
  std::string address_;

  std::atomic<bool> stopping_{false};
  bool stopped_ = false;
  absl::Mutex serving_mutex_;
  bool draining_ ABSL_GUARDED_BY(serving_mutex_) = false;

  // Made by the loading thread, used by the Forward thread; gone after it.
  std::unique_ptr<ServedPool> served_;
  std::optional<WorkerPool> pool_;
  std::unique_ptr<GroupedExecutor> executor_;
  std::optional<MeteredExecutor> metered_;

  std::unique_ptr<MemoryInbox> inbox_;
  std::optional<PoolLender> lender_;
  std::optional<ForwardStreamServer> forward_;
  std::unique_ptr<grpc::Server> server_;
};

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Create(const ExpertOptions& options) {
  RETURN_IF_ERROR(CheckCpuTier(options.cpu_tier, ReadCpuFeatures()));
  auto impl = std::make_unique<Impl>(options);
  RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<ExpertServer>(new ExpertServer(std::move(impl)));
}

ExpertServer::ExpertServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertServer::~ExpertServer() = default;
const std::string& ExpertServer::address() const { return impl_->address(); }
absl::Status ExpertServer::Run(StopSignals& stop) { return impl_->Run(stop); }

}  // namespace banyan::expert
