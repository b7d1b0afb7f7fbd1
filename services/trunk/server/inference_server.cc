#include "services/trunk/server/inference_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/metrics/http_exposer.h"
#include "common/metrics/registry.h"
#include "common/plan/trunk_plan.h"
#include "common/rpc/health_service.h"
#include "common/rpc/listen_address.h"
#include "common/rpc/load_phase_gauge.h"
#include "common/rpc/load_tracker.h"
#include "common/rpc/load_watchers.h"
#include "common/rpc/server_threads.h"
#include "services/trunk/server/generate_calls.h"
#include "services/trunk/server/inference_service.h"
#include "services/trunk/server/loaded_trunk.h"
#include "services/trunk/server/prompt_workers.h"
#include "services/trunk/server/readiness.h"
#include "services/trunk/server/request_metrics.h"

namespace banyan::trunk {
namespace {

using common::v1::LoadProgress;

// A prompt of 2^20 tokens as ids takes 3 to 4 MB, as text 4 to 5.
constexpr int kMaxRequestBytes = 8 << 20;
// Per connection, for calls that will be refused and for everything but Generate.
constexpr int kSpareStreams = 128;
// Prompt log-probabilities with alternatives are the largest answers.
constexpr int kMaxResponseBytes = 64 << 20;
// How long a trunk whose load failed waits for WatchLoad streams to say so.
constexpr absl::Duration kFailureGrace = absl::Seconds(1);
// What is left of a call after the engine has drained: clients read their last messages.
constexpr absl::Duration kLastWrites = absl::Seconds(2);

}  // namespace

class InferenceServer::Impl {
 public:
  explicit Impl(const TrunkOptions& options)
      : options_(options),
        request_metrics_(&metrics_),
        workers_(std::make_unique<PromptWorkers>(options.max_queued_requests)),
        watchers_(tracker_),
        service_(&tracker_, &watchers_, workers_.get()),
        health_({inference::v1::Inference::service_full_name()}) {
    std::vector<LoadProgress::Replica> replicas;
    for (size_t shard = 0; shard < options.cluster.shards.size(); ++shard) {
      for (const std::string& address : options.cluster.shards[shard].replicas) {
        LoadProgress::Replica& replica = replicas.emplace_back();
        replica.set_shard(static_cast<int32_t>(shard));
        replica.set_address(address);
      }
    }
    tracker_.SetReplicas(std::move(replicas));
  }

  ~Impl() { Stop(absl::Now()); }

  absl::Status Listen() {
    if (!options_.metrics_listen.empty()) {
      ASSIGN_OR_RETURN(exposer_,
                       HttpExposer::Create(options_.metrics_listen, "banyan-trunk", &metrics_));
    }
    RETURN_IF_ERROR(CheckUnixSocketFree(options_.listen));
    grpc::EnableDefaultHealthCheckService(false);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
    builder.SetMaxSendMessageSize(kMaxResponseBytes);
    // A port in use is an error, not a second server.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // Clients that vanish without a word are noticed, and clients may ask whether we are there.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
    // Streams of one connection. What is above our limit of calls is refused at once, and this
    // bounds what waits for that: 10,000 calls opened together cost 157 MB without it.
    const int max_calls =
        (options_.max_sequences > 0 ? options_.max_sequences : kDefaultSequences) +
        options_.max_queued_requests;
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, max_calls + kSpareStreams);
    LimitHandlerThreads(builder, options_.max_queued_requests);  // handlers that wait for workers_
    int port = -1;
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    builder.RegisterService(&health_);
    GenerateCalls::Options calls;
    calls.slow_client_timeout = options_.slow_client_timeout;
    calls.max_calls = max_calls;
    generate_.emplace(calls, builder.AddCompletionQueue(), workers_.get(), &request_metrics_,
                      [this] { return service_.GetModel(); });
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      generate_->Stop();
      return ExplainListenFailure(options_.listen);
    }
    generate_->Start([this](grpc::ServerContext* context, inference::v1::GenerateRequest* request,
                            GenerateCalls::Writer* writer, grpc::ServerCompletionQueue* queue,
                            void* tag) {
      service_.RequestGenerate(context, request, writer, queue, queue, tag);
    });
    address_ = options_.listen;
    if (address_.compare(0, 5, "unix:") != 0) {
      address_ = fmt::format("{}:{}", address_.substr(0, address_.rfind(':')), port);
    }
    return absl::OkStatus();
  }

  absl::Status Run(StopSignals& stop) {
    absl::Status loaded;
    std::thread loader([&] {
      loaded = Load(stop);
      if (loaded.ok()) return;
      if (!stopping_) {
        tracker_.SetPhase(LoadProgress::FAILED, std::string(loaded.message()));
        watchers_.WaitUntilTold(absl::Now() + kFailureGrace);
      }
      stop.Notify();
    });
    const int signal = stop.Wait();
    stopping_ = true;
    stop.RestoreDefault();
    loader.join();
    if (signal == 0 && !loaded.ok()) return loaded;
    if (absl::Status fault = Fault(); !fault.ok()) {
      Stop(absl::Now());  // what was under way has ended
      return fault;
    }
    service_.SetDraining();  // before it is said: whoever reads the line finds it true
    LogInfo("draining",
            {{"signal", signal}, {"timeout", absl::FormatDuration(options_.drain_timeout)}});
    Stop(absl::Now() + options_.drain_timeout);
    LogInfo("stopped");
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }

 private:
  absl::Status Load(StopSignals& stop) {
    const absl::Time start = absl::Now();
    ASSIGN_OR_RETURN(
        trunk_, LoadedTrunk::Load(
                    options_, [this] { return stopping_.load(); },
                    [&](const absl::Status& why) { OnFault(why, stop); }, &tracker_, &metrics_));
    service_.SetModel(&trunk_->model());
    monitor_.emplace(
        [this] {
          RETURN_IF_ERROR(Fault());
          return trunk_->ExpertsReady();
        },
        [this](bool serving) { SetServing(serving); }, &metrics_);
    tracker_.SetPhase(LoadProgress::READY);
    LogInfo("ready",
            {{"address", address_}, {"seconds", absl::ToDoubleSeconds(absl::Now() - start)}});
    return absl::OkStatus();
  }

  // On the engine's thread.
  void OnFault(const absl::Status& why, StopSignals& stop) {
    {
      const absl::MutexLock lock(&mutex_);
      fault_ = why;
      health_.SetServing(false);
    }
    stop.Notify();
  }

  absl::Status Fault() {
    const absl::MutexLock lock(&mutex_);
    return fault_;
  }

  void SetServing(bool serving) {
    const absl::MutexLock lock(&mutex_);
    health_.SetServing(serving && fault_.ok());
  }

  void Stop(absl::Time deadline) {
    if (server_ == nullptr || std::exchange(stopped_, true)) return;
    stopping_ = true;
    service_.SetDraining();
    monitor_.reset();
    health_.SetServing(false);
    watchers_.Stop();
    health_.Stop();
    if (trunk_ != nullptr) trunk_->model().engine->Drain(deadline);
    server_->Shutdown(absl::ToChronoTime(absl::Now() + kLastWrites));
    workers_.reset();  // the calls they work for have ended
    generate_->Stop();
    RemoveUnixSocket(address_);
  }

  const TrunkOptions options_;
  MetricsRegistry metrics_;
  RequestMetrics request_metrics_;
  LoadPhaseGauge load_phase_{"trunk", &metrics_};
  LoadTracker tracker_{[this](LoadProgress::Phase phase) { load_phase_.Set(phase); },
                       [this](LoadProgress::Phase phase, uint64_t done, uint64_t total) {
                         load_phase_.SetBytes(phase, done, total);
                       }};
  std::unique_ptr<LoadedTrunk> trunk_;  // made by the loading thread
  std::unique_ptr<PromptWorkers> workers_;
  LoadWatchers watchers_;
  InferenceService service_;
  HealthService health_;
  std::unique_ptr<HttpExposer> exposer_;
  std::string address_;

  absl::Mutex mutex_;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);  // the device is lost

  std::atomic<bool> stopping_{false};
  bool stopped_ = false;
  std::optional<GenerateCalls> generate_;
  std::unique_ptr<grpc::Server> server_;
  std::optional<ReadinessMonitor> monitor_;
};

absl::StatusOr<std::unique_ptr<InferenceServer>> InferenceServer::Create(
    const TrunkOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<InferenceServer>(new InferenceServer(std::move(impl)));
}

InferenceServer::InferenceServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
InferenceServer::~InferenceServer() = default;
const std::string& InferenceServer::address() const { return impl_->address(); }
absl::Status InferenceServer::Run(StopSignals& stop) { return impl_->Run(stop); }

}  // namespace banyan::trunk
