#include "services/trunk/experts/expert_directory.h"

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/channel_settings.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/listen_address.h"
#include "common/rpc/shm_ring.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "services/trunk/experts/pool_loan.h"

namespace banyan::trunk {
namespace {

using Clock = QueuePoller::Clock;
using std::chrono::milliseconds;

constexpr milliseconds kFirstBackoff(50);
constexpr milliseconds kLastBackoff(500);
constexpr milliseconds kRefusedBackoff(1000);
// The thread only looks at its queues: a thread that slept inside gRPC would be the one that gRPC
// wakes for the calls' packets.
constexpr milliseconds kBusyPause(2);
constexpr milliseconds kIdlePause(20);
constexpr std::chrono::seconds kWaitingLogEvery(10);

struct Describing {
  grpc::ClientContext context;
  expert::v1::DescribeRequest request;
  expert::v1::DescribeResponse response;
  grpc::Status status;
  std::unique_ptr<expert::v1::Experts::Stub> stub;
  std::unique_ptr<grpc::ClientAsyncResponseReader<expert::v1::DescribeResponse>> rpc;
};

enum class Phase : uint8_t { kWaiting, kDescribing, kDescribed, kOpening, kReady };

struct Replica {
  int32_t shard = 0;
  std::string address;
  Phase phase = Phase::kWaiting;
  bool refused = false;
  std::string reason = "not tried yet";  // why it is not ready
  Clock::time_point next;                // end of the pause, or of the patience with kOpening
  Clock::duration backoff = kFirstBackoff;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<Describing> describing;
  prometheus::Gauge* ready_metric = nullptr;
  prometheus::Gauge* refused_metric = nullptr;
};

struct Shard {
  int32_t first_replica = 0;
  int32_t num_replicas = 0;
  std::optional<ShardHost> host;  // the first replica that was accepted
  prometheus::Counter* connects = nullptr;
  prometheus::Counter* losses = nullptr;
};

std::string_view SplitText(expert::v1::Split split) {
  return split == expert::v1::EXPERTS ? "experts" : split == expert::v1::WIDTH ? "width" : "";
}

}  // namespace

class ExpertDirectory::Impl {
 public:
  Impl(Options options, MetricsRegistry* metrics)
      : options_(std::move(options)),
        num_shards_(static_cast<int32_t>(options_.cluster.shards.size())) {
    if (options_.credentials == nullptr) {
      options_.credentials = grpc::InsecureChannelCredentials();
    }
    absl::MutexLock lock(&mutex_);
    for (int32_t s = 0; s < num_shards_; ++s) AddShard(s, metrics);
    links_ = std::make_unique<ExpertLinks>(
        static_cast<int32_t>(replicas_.size()), options_.spin,
        [this](int32_t replica, const absl::Status& status) { OnStream(replica, status); });
    thread_ = std::thread([this] { Loop(); });
  }

  ~Impl() {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
    }
    thread_.join();
    for (Replica& replica : replicas_) {
      if (replica.describing != nullptr) replica.describing->context.TryCancel();
    }
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) continue;
    links_.reset();
  }

  int32_t num_shards() const { return num_shards_; }
  const Options& options() const { return options_; }
  ExpertLinks& links() { return *links_; }
  int32_t first_replica(int32_t shard) const { return first_replica_[static_cast<size_t>(shard)]; }
  int32_t num_replicas(int32_t shard) const {
    return first_replica_[static_cast<size_t>(shard) + 1] - first_replica(shard);
  }
  const std::string& address(int32_t replica) const {
    return addresses_[static_cast<size_t>(replica)];
  }

  absl::Status Ready() const {
    absl::MutexLock lock(&mutex_);
    return ReadyLocked();
  }

  absl::Status WaitReady(absl::Time deadline) const {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithDeadline(absl::Condition(this, &Impl::AllReady), deadline);
    return ReadyLocked();
  }

  std::vector<ShardInfo> Shards() const {
    absl::MutexLock lock(&mutex_);
    std::vector<ShardInfo> infos;
    for (int32_t s = 0; s < num_shards_; ++s) {
      const Shard& shard = shards_[static_cast<size_t>(s)];
      ShardInfo& info = infos.emplace_back();
      info.index = s;
      if (shard.host.has_value()) {
        const expert::v1::DescribeResponse& host = shard.host->description;
        info.split = SplitText(host.split());
        info.pool_format = Printable(host.pool_format());
        info.kernel_tier = Printable(host.kernel_tier());
        info.pool_bytes = host.pool_bytes();
      }
      for (int32_t r = 0; r < shard.num_replicas; ++r) {
        const Replica& replica = replicas_[static_cast<size_t>(shard.first_replica + r)];
        info.replicas.push_back(
            {replica.address, replica.phase == Phase::kReady, StateText(replica)});
      }
    }
    return infos;
  }

  std::vector<ExpertRange> ExpertRanges() const {
    absl::MutexLock lock(&mutex_);
    CHECK(complete_);
    std::vector<ExpertRange> ranges;
    for (const Shard& shard : shards_) {
      const expert::v1::DescribeResponse& host = shard.host->description;
      ranges.push_back({static_cast<int32_t>(host.first_expert()),
                        static_cast<int32_t>(host.num_shard_experts())});
    }
    return ranges;
  }

  absl::StatusOr<FileDescriptor> BorrowPool(int32_t shard) const ABSL_LOCKS_EXCLUDED(mutex_) {
    ASSIGN_OR_RETURN(const std::vector<std::string> lenders, Lenders(shard));
    absl::StatusOr<FileDescriptor> file;
    for (const std::string& address : lenders) {
      file = BorrowPoolFrom(address, options_.credentials, options_.connect_timeout);
      if (file.ok()) break;
    }
    return file;
  }

  std::string ShardState(int32_t shard) const {
    absl::MutexLock lock(&mutex_);
    return ShardStateLocked(shard);
  }

 private:
  void AddShard(int32_t s, MetricsRegistry* metrics) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto& addresses = options_.cluster.shards[static_cast<size_t>(s)].replicas;
    const std::string label = std::to_string(s);
    Shard shard;
    shard.first_replica = static_cast<int32_t>(replicas_.size());
    shard.num_replicas = static_cast<int32_t>(addresses.size());
    shard.connects =
        &metrics->Counter("banyan_trunk_expert_connects_total",
                          "Streams to expert hosts that became ready.", {{"shard", label}});
    shard.losses =
        &metrics->Counter("banyan_trunk_expert_stream_losses_total",
                          "Ready streams to expert hosts that were lost.", {{"shard", label}});
    first_replica_.push_back(shard.first_replica);
    for (const std::string& address : addresses) {
      Replica& replica = replicas_.emplace_back();
      replica.shard = s;
      replica.address = address;
      replica.ready_metric =
          &metrics->Gauge("banyan_trunk_expert_replica_ready", "1 while the replica is usable.",
                          {{"shard", label}, {"replica", address}});
      replica.refused_metric =
          &metrics->Gauge("banyan_trunk_expert_replica_refused",
                          "1 while the replica answers and does not fit the model or its shard.",
                          {{"shard", label}, {"replica", address}});
      addresses_.push_back(address);
    }
    if (s + 1 == num_shards_) first_replica_.push_back(static_cast<int32_t>(replicas_.size()));
    shards_.push_back(std::move(shard));
  }

  // Whom BorrowPool may ask, at least one.
  absl::StatusOr<std::vector<std::string>> Lenders(int32_t shard) const
      ABSL_LOCKS_EXCLUDED(mutex_) {
    if (!options_.shared_memory) {
      return absl::FailedPreconditionError(
          "no memory is shared with expert hosts (--expert_transport grpc)");
    }
    std::vector<std::string> lenders;
    bool any_unix = false;
    absl::MutexLock lock(&mutex_);
    const Shard& asked = shards_[static_cast<size_t>(shard)];
    for (int32_t r = asked.first_replica; r < asked.first_replica + asked.num_replicas; ++r) {
      const Replica& replica = replicas_[static_cast<size_t>(r)];
      if (!UnixSocketPath(replica.address).has_value()) continue;
      any_unix = true;
      if (replica.phase == Phase::kReady) lenders.push_back(replica.address);
    }
    if (!lenders.empty()) return lenders;
    return StatusF(
        any_unix ? absl::StatusCode::kUnavailable : absl::StatusCode::kFailedPrecondition,
        "no host that could lend its pool, which takes a unix: address: {}",
        ShardStateLocked(shard));
  }

  void Loop() {
    Clock::time_point next_log = Clock::now() + kWaitingLogEvery;
    std::vector<int32_t> expired;
    while (true) {
      bool busy = false;
      {
        absl::MutexLock lock(&mutex_);
        if (stop_) return;
        HandleDescriptions();
        const Clock::time_point now = Clock::now();
        for (size_t r = 0; r < replicas_.size(); ++r) {
          Replica& replica = replicas_[r];
          if (replica.phase == Phase::kWaiting && now >= replica.next) Describe(r);
          if (replica.phase == Phase::kOpening && now >= replica.next) {
            expired.push_back(static_cast<int32_t>(r));
          }
          busy |= replica.phase == Phase::kDescribing || replica.phase == Phase::kOpening;
        }
        if (now >= next_log) {
          next_log = now + kWaitingLogEvery;
          if (const absl::Status ready = ReadyLocked(); !ready.ok()) {
            LogInfo("experts_waiting", {{"for", ready.message()}});
          }
        }
      }
      PollStreams(expired);
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(&stop_),
                              absl::FromChrono(busy ? kBusyPause : kIdlePause));
    }
  }

  // While no call is under way: notices ready, refused and lost streams.
  void PollStreams(std::vector<int32_t>& expired) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (!links_->TryTakeTurn()) return;
    bool any = true;
    while (any) {
      // An answer to a call that is over.
      if (ExpertStream* stream = links_->Poll(&any); stream != nullptr) stream->TakeReply();
    }
    for (int32_t replica : expired) {
      const ExpertStream* stream = links_->stream(replica);
      if (stream != nullptr && stream->state() == ExpertStream::State::kOpening) {
        links_->Drop(replica,
                     StatusF(absl::StatusCode::kUnavailable, "did not take the stream within {} ms",
                             absl::ToInt64Milliseconds(options_.connect_timeout)));
      }
    }
    expired.clear();
    links_->EndTurn();
  }

  void Describe(size_t r) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Replica& replica = replicas_[r];
    // A channel of its own for each attempt: resolved anew, no backoff of gRPC's.
    replica.channel =
        grpc::CreateCustomChannel(replica.address, options_.credentials, ExpertChannelArguments());
    replica.describing = std::make_unique<Describing>();
    Describing& describing = *replica.describing;
    describing.stub = expert::v1::Experts::NewStub(replica.channel);
    describing.context.set_deadline(std::chrono::system_clock::now() +
                                    absl::ToChronoMilliseconds(options_.connect_timeout));
    describing.rpc =
        describing.stub->AsyncDescribe(&describing.context, describing.request, &queue_);
    describing.rpc->Finish(&describing.response, &describing.status, reinterpret_cast<void*>(r));
    replica.phase = Phase::kDescribing;
  }

  void HandleDescriptions() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.AsyncNext(&tag, &ok, gpr_inf_past(GPR_CLOCK_MONOTONIC)) ==
           grpc::CompletionQueue::GOT_EVENT) {
      const size_t r = reinterpret_cast<size_t>(tag);
      const std::unique_ptr<Describing> described = std::move(replicas_[r].describing);
      if (described->status.ok()) {
        OnDescription(r, std::move(described->response));
      } else if (described->status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
        Lose(r, StatusF(absl::StatusCode::kUnavailable, "no answer to Describe within {} ms",
                        absl::ToInt64Milliseconds(options_.connect_timeout)));
      } else {
        Lose(r, FromGrpc(described->status));
      }
    }
  }

  void OnDescription(size_t r, expert::v1::DescribeResponse host)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Replica& replica = replicas_[r];
    Shard& shard = shards_[static_cast<size_t>(replica.shard)];
    absl::Status status = CheckReplica(host, options_.model, replica.shard, num_shards_);
    if (status.ok() && shard.host.has_value()) {
      status = CheckSameShard(shard.host->description, shard.host->address, host);
    }
    if (!status.ok()) {
      Refuse(r, status);
      return;
    }
    replica.phase = Phase::kDescribed;
    replica.refused = false;
    replica.refused_metric->Set(0);
    replica.reason = "waiting for the other shards";
    if (!shard.host.has_value()) shard.host = ShardHost{replica.address, std::move(host)};
    if (!complete_) CheckCluster();
    if (complete_) OpenDescribed();
  }

  // Once all shards are known. A cluster that does not fit is forgotten and described anew.
  void CheckCluster() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<ShardHost> hosts;
    for (const Shard& shard : shards_) {
      if (!shard.host.has_value()) return;
      hosts.push_back(*shard.host);
    }
    const absl::Status status = CheckCoverage(hosts);
    if (status.ok()) {
      complete_ = true;
      cluster_error_ = absl::OkStatus();
      return;
    }
    if (status != cluster_error_) {
      LogError("cluster_refused", {{"reason", status.message()}});
    }
    cluster_error_ = status;
    for (Shard& shard : shards_) shard.host.reset();
    for (size_t r = 0; r < replicas_.size(); ++r) {
      if (replicas_[r].phase == Phase::kDescribed) Pause(r, kRefusedBackoff);
    }
  }

  // Memory that a host on this machine has been sent.
  std::unique_ptr<ShmRingCaller> NewRing(const Replica& replica) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const std::optional<std::string> inbox = MemoryInboxPath(replica.address);
    if (!options_.shared_memory || !inbox.has_value()) return nullptr;
    const expert::v1::DescribeResponse& host =
        shards_[static_cast<size_t>(replica.shard)].host->description;
    auto ring = ShmRingCaller::Create({.max_rows = host.max_rows(),
                                       .max_top_k = host.max_top_k(),
                                       .hidden_size = host.hidden_size()});
    const absl::Status sent = ring.ok() ? (*ring)->HandOver(*inbox) : ring.status();
    if (sent.ok()) return *std::move(ring);
    LogWarning("shm_ring_not_offered", {{"address", replica.address}, {"reason", sent.message()}});
    return nullptr;
  }

  void OpenDescribed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Clock::time_point patience =
        Clock::now() + absl::ToChronoNanoseconds(options_.connect_timeout);
    for (size_t r = 0; r < replicas_.size(); ++r) {
      Replica& replica = replicas_[r];
      if (replica.phase != Phase::kDescribed) continue;
      replica.phase = Phase::kOpening;
      replica.next = patience;
      links_->Open(static_cast<int32_t>(r), std::move(replica.channel), NewRing(replica));
    }
  }

  // From whoever has the turn.
  void OnStream(int32_t r, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    Replica& replica = replicas_[static_cast<size_t>(r)];
    Shard& shard = shards_[static_cast<size_t>(replica.shard)];
    if (!status.ok()) {
      if (replica.phase == Phase::kReady) shard.losses->Increment();
      Lose(static_cast<size_t>(r), status);
      return;
    }
    replica.phase = Phase::kReady;
    replica.backoff = kFirstBackoff;
    replica.ready_metric->Set(1);
    shard.connects->Increment();
    LogInfo("expert_ready",
            {{"shard", replica.shard}, {"num_shards", num_shards_}, {"replica", replica.address}});
  }

  void Refuse(size_t r, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Replica& replica = replicas_[r];
    std::string reason(ToStd(status.message()));
    if (!replica.refused || reason != replica.reason) {
      LogError("expert_refused", {{"shard", replica.shard},
                                  {"num_shards", num_shards_},
                                  {"replica", replica.address},
                                  {"reason", reason}});
    }
    replica.refused = true;
    replica.reason = std::move(reason);
    Pause(r, kRefusedBackoff);
  }

  void Lose(size_t r, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Replica& replica = replicas_[r];
    std::string reason = Printable(ToStd(status.message()), 512);
    if (replica.phase == Phase::kReady || replica.refused || reason != replica.reason) {
      LogWarning("expert_unreachable", {{"shard", replica.shard},
                                        {"num_shards", num_shards_},
                                        {"replica", replica.address},
                                        {"reason", reason}});
    }
    replica.refused = false;
    replica.reason = std::move(reason);
    Pause(r, replica.backoff);
    replica.backoff = std::min<Clock::duration>(replica.backoff * 2, kLastBackoff);
  }

  void Pause(size_t r, Clock::duration pause) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Replica& replica = replicas_[r];
    replica.phase = Phase::kWaiting;
    replica.next = Clock::now() + pause;
    replica.channel.reset();
    replica.ready_metric->Set(0);
    replica.refused_metric->Set(replica.refused ? 1 : 0);
  }

  bool ShardReady(const Shard& shard) const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (int32_t r = 0; r < shard.num_replicas; ++r) {
      if (replicas_[static_cast<size_t>(shard.first_replica + r)].phase == Phase::kReady) {
        return true;
      }
    }
    return false;
  }

  bool AllReady() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return std::all_of(shards_.begin(), shards_.end(), [this](const Shard& shard) {
      mutex_.AssertReaderHeld();
      return ShardReady(shard);
    });
  }

  absl::Status ReadyLocked() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    if (!cluster_error_.ok()) return cluster_error_;
    std::string missing;
    bool refused = false;
    for (int32_t s = 0; s < num_shards_; ++s) {
      const Shard& shard = shards_[static_cast<size_t>(s)];
      if (ShardReady(shard)) continue;
      bool all_refused = true;
      for (int32_t r = 0; r < shard.num_replicas; ++r) {
        all_refused &= replicas_[static_cast<size_t>(shard.first_replica + r)].refused;
      }
      refused |= all_refused;
      missing += (missing.empty() ? "" : "; ") + ShardStateLocked(s);
    }
    if (missing.empty()) return absl::OkStatus();
    return StatusF(refused ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kUnavailable,
                   "waiting for {}", missing);
  }

  std::string ShardStateLocked(int32_t s) const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    const Shard& shard = shards_[static_cast<size_t>(s)];
    std::string text = fmt::format("shard {} of {}: ", s, num_shards_);
    for (int32_t r = 0; r < shard.num_replicas; ++r) {
      const Replica& replica = replicas_[static_cast<size_t>(shard.first_replica + r)];
      text += fmt::format("{}{} ({})", r == 0 ? "" : ", ", Printable(replica.address),
                          StateText(replica));
    }
    return text;
  }

  static std::string StateText(const Replica& replica) {
    if (replica.phase == Phase::kReady) return "ready";
    return fmt::format("{}: {}", replica.refused ? "refused" : "connecting", replica.reason);
  }

  Options options_;
  const int32_t num_shards_;
  std::vector<int32_t> first_replica_;  // [num_shards + 1]
  std::vector<std::string> addresses_;  // by replica
  grpc::CompletionQueue queue_;         // of the Describe calls; tags are replica numbers
  std::unique_ptr<ExpertLinks> links_;
  std::thread thread_;

  mutable absl::Mutex mutex_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool complete_ ABSL_GUARDED_BY(mutex_) = false;  // all shards are known and fit
  absl::Status cluster_error_ ABSL_GUARDED_BY(mutex_);
  std::vector<Shard> shards_ ABSL_GUARDED_BY(mutex_);
  std::vector<Replica> replicas_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<std::unique_ptr<ExpertDirectory>> ExpertDirectory::Create(Options options,
                                                                         MetricsRegistry* metrics) {
  if (options.cluster.shards.empty()) return InvalidArgumentF("cluster without shards");
  for (size_t s = 0; s < options.cluster.shards.size(); ++s) {
    if (options.cluster.shards[s].replicas.empty()) {
      return InvalidArgumentF("cluster shard {} without replicas", s);
    }
  }
  return std::unique_ptr<ExpertDirectory>(
      new ExpertDirectory(std::make_unique<Impl>(std::move(options), metrics)));
}

ExpertDirectory::ExpertDirectory(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertDirectory::~ExpertDirectory() = default;

int32_t ExpertDirectory::num_shards() const { return impl_->num_shards(); }
int32_t ExpertDirectory::hidden_size() const { return impl_->options().model.hidden_size; }
int32_t ExpertDirectory::num_experts() const { return impl_->options().model.num_experts; }
absl::Status ExpertDirectory::Ready() const { return impl_->Ready(); }
absl::Status ExpertDirectory::WaitReady(absl::Time deadline) const {
  return impl_->WaitReady(deadline);
}
std::vector<ExpertDirectory::ShardInfo> ExpertDirectory::Shards() const { return impl_->Shards(); }
ExpertLinks& ExpertDirectory::links() { return impl_->links(); }
int32_t ExpertDirectory::first_replica(int32_t shard) const { return impl_->first_replica(shard); }
int32_t ExpertDirectory::num_replicas(int32_t shard) const { return impl_->num_replicas(shard); }
const std::string& ExpertDirectory::address(int32_t replica) const {
  return impl_->address(replica);
}
std::vector<ExpertRange> ExpertDirectory::ExpertRanges() const { return impl_->ExpertRanges(); }
absl::StatusOr<FileDescriptor> ExpertDirectory::BorrowPool(int32_t shard) const {
  return impl_->BorrowPool(shard);
}
std::string ExpertDirectory::ShardState(int32_t shard) const { return impl_->ShardState(shard); }

}  // namespace banyan::trunk
