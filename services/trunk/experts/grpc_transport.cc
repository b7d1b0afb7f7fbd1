#include "services/trunk/experts/grpc_transport.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/lent_payload.h"
#include "common/rpc/payload_buffer.h"

namespace banyan::trunk {
namespace {

using Clock = QueuePoller::Clock;

static_assert(kOtherShard == kNoExpert);

// How long the wait for answers may sleep before it looks for newly opened streams.
constexpr std::chrono::milliseconds kLook(20);

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

struct ShardMetrics {
  ShardMetrics(MetricsRegistry& registry, int32_t shard)
      : ShardMetrics(registry, MetricLabels{{"shard", std::to_string(shard)}}) {}

  HotHistogram& total;
  HotHistogram& queue;
  HotHistogram& compute;
  HotHistogram& transport;
  HotCounter& rows;
  HotCounter& sent_bytes;
  HotCounter& received_bytes;
  prometheus::Counter& failures;
  prometheus::Counter& resends_lost;
  prometheus::Counter& resends_late;
  prometheus::Counter& late_replies;

 private:
  ShardMetrics(MetricsRegistry& registry, const MetricLabels& labels)
      : total(Phase(registry, labels, "total")),
        queue(Phase(registry, labels, "queue")),
        compute(Phase(registry, labels, "compute")),
        transport(Phase(registry, labels, "transport")),
        rows(
            registry.HotCounter("banyan_trunk_expert_rows_total", "Rows sent to experts.", labels)),
        sent_bytes(registry.HotCounter("banyan_trunk_expert_sent_bytes_total",
                                       "Bytes of expert calls sent.", labels)),
        received_bytes(registry.HotCounter("banyan_trunk_expert_received_bytes_total",
                                           "Bytes of expert replies received.", labels)),
        failures(registry.Counter("banyan_trunk_expert_call_failures_total",
                                  "Expert calls that no replica answered.", labels)),
        resends_lost(Resends(registry, labels, "lost")),
        resends_late(Resends(registry, labels, "late")),
        late_replies(registry.Counter("banyan_trunk_expert_late_replies_total",
                                      "Replies dropped because the call was over.", labels)) {}

  static HotHistogram& Phase(MetricsRegistry& registry, MetricLabels labels, const char* phase) {
    labels["phase"] = phase;
    return registry.HotHistogram("banyan_trunk_expert_call_seconds",
                                 "Expert calls: total, and of that in the host's queue, in its "
                                 "computation, and in between (transport).",
                                 LatencyBuckets(), labels);
  }
  static prometheus::Counter& Resends(MetricsRegistry& registry, MetricLabels labels,
                                      const char* reason) {
    labels["reason"] = reason;
    return registry.Counter("banyan_trunk_expert_resends_total",
                            "Expert calls sent again to another replica: the stream was lost, or "
                            "the answer late.",
                            labels);
  }
};

}  // namespace

class GrpcTransport::Impl {
 public:
  Impl(const Options& options, ExpertDirectory* directory, MetricsRegistry* metrics)
      : options_(options),
        directory_(*directory),
        links_(directory->links()),
        hidden_size_(directory->hidden_size()) {
    for (int32_t shard = 0; shard < directory->num_shards(); ++shard) {
      calls_.push_back(std::make_unique<Call>(shard, hidden_size_, *metrics));
    }
  }

  void LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks, size_t block_bytes) {
    lent_.emplace(std::move(blocks), block_bytes);
  }
  std::byte* TakeRowsMemory() {
    CHECK(!under_way_);
    return lent_.has_value() ? lent_->Take() : nullptr;
  }

  absl::Status Dispatch(const Batch& batch) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    CHECK(!under_way_ && batch.num_rows > 0);
    CHECK(batch.activations_dtype == DType::kF32 || batch.activations_dtype == DType::kBF16);
    if (!plan_.has_value()) {
      RETURN_IF_ERROR(directory_.Ready());
      plan_.emplace(directory_.ExpertRanges(), directory_.num_experts());
    }
    batch_ = batch;
    plan_->Build(batch.num_rows, batch.top_k, batch.expert_ids, batch.weights);
    PrepareActivations();
    links_.TakeTurn();
    under_way_ = true;
    // Replies to calls that were over when they came.
    for (bool any = true; any;) {
      if (ExpertStream* stream = links_.Poll(&any); stream != nullptr) OnReply(stream);
    }
    const Clock::time_point now = Clock::now();
    for (const auto& call : calls_) {
      if (absl::Status status = Start(*call, now); !status.ok()) {
        End();
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Combine(float* out) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    CHECK(under_way_);
    const Clock::time_point start = Clock::now();
    absl::Status status = Collect(out);
    End();
    combine_time_ += Clock::now() - start;
    return status;
  }

  absl::Duration CombineTime() const { return absl::FromChrono(combine_time_); }
  absl::Status Ready() const { return directory_.Ready(); }
  absl::Status WaitReady(absl::Time deadline) { return directory_.WaitReady(deadline); }

 private:
  struct Attempt {
    int32_t replica;
    uint64_t sequence;
    Clock::time_point sent;
  };

  struct Call {
    Call(int32_t shard_index, int32_t hidden_size, MetricsRegistry& registry)
        : shard(shard_index), parser(hidden_size), metrics(registry, shard_index) {}

    const int32_t shard;
    ForwardFrameParser parser;  // owns the reply until it is added
    ShardMetrics metrics;
    PayloadBuffer gathered;
    int32_t preferred = 0;  // replica of the shard that answered last

    int64_t traced_step = -1;  // the last step whose trace has been sent

    // Of this batch:
    grpc::Slice activations;
    std::string_view trace;         // of every attempt
    std::vector<Attempt> attempts;  // under way
    std::vector<int32_t> asked;     // every replica of an attempt
    Clock::time_point start, resend_at, give_up_at;
    bool done = false;
    ForwardResponseView reply;
    absl::Status error;  // of the last attempt that failed
  };

  absl::Status Collect(float* out) {
    std::memset(out, 0, static_cast<size_t>(batch_.num_rows) * hidden_size_ * sizeof(float));
    size_t added = 0;
    while (true) {
      // In shard order, each as soon as those before it are there.
      for (; added < calls_.size() && calls_[added]->done; ++added) Add(*calls_[added], out);
      if (added == calls_.size()) break;
      bool any = false;
      ExpertStream* stream = links_.Next(NextLimit(), &any);
      if (stream != nullptr && OnReply(stream)) continue;
      RETURN_IF_ERROR(CheckCalls());
    }
    return absl::OkStatus();
  }

  // gRPC may hold the bytes longer than the batch lives, when a replica hangs: what does not lie in
  // memory that waits for it is copied, once.
  void PrepareActivations() {
    const size_t bytes = static_cast<size_t>(batch_.num_rows) * RowBytes();
    if (lent_.has_value() && batch_.activations == lent_->taken()) {
      source_ = lent_->taken();
      shared_slice_ = lent_->Share(bytes);
      return;
    }
    std::byte* to = shared_.Prepare(bytes).data();
    std::memcpy(to, batch_.activations, bytes);
    source_ = to;
    shared_slice_ = shared_.Share(bytes);
  }

  size_t RowBytes() const {
    return static_cast<size_t>(hidden_size_) * DTypeSizeBytes(batch_.activations_dtype);
  }

  absl::Status Start(Call& call, Clock::time_point now) {
    const DispatchPlan::ShardRows& rows = plan_->shard(call.shard);
    call.attempts.clear();
    call.asked.clear();
    call.done = rows.num_rows == 0;
    call.reply = {};
    call.error = absl::OkStatus();
    if (call.done) return absl::OkStatus();
    call.trace = {};
    if (!batch_.trace.empty() && call.traced_step != batch_.step_id) {
      call.trace = batch_.trace;
      call.traced_step = batch_.step_id;
    }
    if (rows.all_rows) {
      call.activations = shared_slice_;
    } else {
      const size_t bytes = static_cast<size_t>(rows.num_rows) * RowBytes();
      GatherRows(rows, source_, RowBytes(), call.gathered.Prepare(bytes).data());
      call.activations = call.gathered.Share(bytes);
    }
    call.start = now;
    call.resend_at = now + Limit(options_.resend_after, options_.resend_after_per_row, rows);
    call.give_up_at = now + Limit(options_.give_up_after, options_.give_up_after_per_row, rows);
    if (TrySend(call, now) || SomeReplicaIsBusy(call)) return absl::OkStatus();
    return Lost(call);
  }

  static Clock::duration Limit(absl::Duration base, absl::Duration per_row,
                               const DispatchPlan::ShardRows& rows) {
    return absl::ToChronoNanoseconds(base + per_row * rows.num_rows);
  }

  // To a replica that was not asked yet, the one that answered last first.
  bool TrySend(Call& call, Clock::time_point now) {
    const int32_t count = directory_.num_replicas(call.shard);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t replica = directory_.first_replica(call.shard) + (call.preferred + i) % count;
      if (std::find(call.asked.begin(), call.asked.end(), replica) != call.asked.end()) continue;
      ExpertStream* stream = links_.stream(replica);
      if (stream == nullptr || stream->state() != ExpertStream::State::kReady) continue;
      const DispatchPlan::ShardRows& rows = plan_->shard(call.shard);
      const bool f32 = batch_.activations_dtype == DType::kF32;
      const uint32_t flags =
          (f32 ? uint32_t{kActivationsF32} : 0u) | (options_.reply_f32 ? uint32_t{kReplyF32} : 0u);
      const uint64_t sequence = ++last_sequence_;
      const grpc::ByteBuffer frame =
          MakeForwardRequest({.sequence = sequence,
                              .step = static_cast<uint64_t>(batch_.step_id),
                              .layer = static_cast<uint32_t>(batch_.layer),
                              .num_rows = static_cast<uint32_t>(rows.num_rows),
                              .top_k = static_cast<uint32_t>(batch_.top_k),
                              .flags = flags,
                              .attempt = static_cast<uint32_t>(call.asked.size())},
                             rows.expert_ids, rows.weights, call.activations, call.trace);
      stream->Send(frame, sequence);
      call.attempts.push_back({replica, sequence, now});
      call.asked.push_back(replica);
      call.metrics.rows.Increment(rows.num_rows);
      call.metrics.sent_bytes.Increment(static_cast<double>(frame.Length()));
      return true;
    }
    return false;
  }

  // A stream still waits for the answer to a call that is over; it may come back in time.
  bool SomeReplicaIsBusy(const Call& call) {
    const int32_t first = directory_.first_replica(call.shard);
    for (int32_t r = first; r < first + directory_.num_replicas(call.shard); ++r) {
      if (links_.stream(r) != nullptr && links_.stream(r)->state() == ExpertStream::State::kBusy) {
        return true;
      }
    }
    return false;
  }

  // False when the reply broke a rule and its stream was ended.
  bool OnReply(ExpertStream* stream) {
    const grpc::ByteBuffer frame = stream->TakeReply();
    const auto is_its = [stream](const Attempt& attempt) {
      return attempt.replica == stream->replica() && attempt.sequence == stream->sequence();
    };
    for (const auto& owned : calls_) {
      Call& call = *owned;
      const auto attempt = std::find_if(call.attempts.begin(), call.attempts.end(), is_its);
      if (attempt == call.attempts.end()) continue;
      call.metrics.received_bytes.Increment(static_cast<double>(frame.Length()));
      if (absl::Status status = Accept(call, *attempt, frame); !status.ok()) {
        call.error = status;
        links_.Drop(stream->replica(), status);  // CheckCalls sees that the attempt is lost
        return false;
      }
      call.attempts.clear();  // other attempts are late from now on
      return true;
    }
    for (const auto& call : calls_) {
      const int32_t place = stream->replica() - directory_.first_replica(call->shard);
      if (place >= 0 && place < directory_.num_replicas(call->shard)) {
        call->metrics.late_replies.Increment();
      }
    }
    return true;
  }

  absl::Status Accept(Call& call, const Attempt& attempt, const grpc::ByteBuffer& frame) {
    ASSIGN_OR_RETURN(call.reply, call.parser.ParseResponse(frame));
    const ForwardResponseHeader& header = call.reply.header;
    const auto expected_rows = static_cast<uint32_t>(plan_->shard(call.shard).num_rows);
    const uint32_t expected_flags = options_.reply_f32 ? uint32_t{kReplyF32} : 0u;
    if (header.sequence != attempt.sequence || header.num_rows != expected_rows ||
        header.flags != expected_flags) {
      return InvalidArgumentF(
          "answered sequence {}, {} rows, flags {:#x}; expected sequence {}, {} rows, flags {:#x}",
          header.sequence, header.num_rows, header.flags, attempt.sequence, expected_rows,
          expected_flags);
    }
    call.done = true;
    call.preferred = attempt.replica - directory_.first_replica(call.shard);
    const double total = Seconds(Clock::now() - attempt.sent);
    const double queue = header.queue_ns * 1e-9;
    const double compute = header.compute_ns * 1e-9;
    call.metrics.total.Observe(total);
    call.metrics.queue.Observe(queue);
    call.metrics.compute.Observe(compute);
    call.metrics.transport.Observe(std::max(0.0, total - queue - compute));
    return absl::OkStatus();
  }

  void Add(const Call& call, float* out) const {
    const DispatchPlan::ShardRows& rows = plan_->shard(call.shard);
    if (rows.num_rows == 0) return;
    if (options_.reply_f32) {
      AddPartialRowsF32(rows, call.reply.partial_sums.data(), hidden_size_, out);
    } else {
      AddPartialRowsBF16(rows, call.reply.partial_sums.data(), hidden_size_, out);
    }
  }

  Clock::time_point NextLimit() const {
    Clock::time_point limit = Clock::now() + kLook;
    for (const auto& call : calls_) {
      if (call->done) continue;
      limit = std::min(limit, call->give_up_at);
      if (directory_.num_replicas(call->shard) > 1) limit = std::min(limit, call->resend_at);
    }
    return limit;
  }

  // Attempts whose stream is gone, answers that are late, calls that nobody will answer.
  absl::Status CheckCalls() {
    const Clock::time_point now = Clock::now();
    for (const auto& owned : calls_) {
      Call& call = *owned;
      if (call.done) continue;
      const size_t before = call.attempts.size();
      call.attempts.erase(
          std::remove_if(call.attempts.begin(), call.attempts.end(),
                         [this](const Attempt& attempt) {
                           const ExpertStream* stream = links_.stream(attempt.replica);
                           return stream == nullptr || stream->sequence() != attempt.sequence;
                         }),
          call.attempts.end());
      const bool lost = call.attempts.size() < before;
      if (now >= call.give_up_at) return GiveUp(call, now);
      if (call.attempts.empty()) {
        const bool again = !call.asked.empty();
        if (TrySend(call, now)) {
          if (again) call.metrics.resends_lost.Increment();
        } else if (!SomeReplicaIsBusy(call)) {
          return Lost(call);
        }
      } else if (!lost && now >= call.resend_at) {
        call.resend_at = now + kLook;  // when no other replica is free now
        if (TrySend(call, now)) {
          call.metrics.resends_late.Increment();
          LogWarning("expert_call_late",
                     {{"shard", call.shard},
                      {"layer", batch_.layer},
                      {"asked", directory_.address(call.attempts.front().replica)},
                      {"next", directory_.address(call.attempts.back().replica)}});
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status GiveUp(Call& call, Clock::time_point now) {
    const auto waited =
        std::chrono::duration_cast<std::chrono::milliseconds>(now - call.start).count();
    const absl::Status status =
        StatusF(absl::StatusCode::kUnavailable, "no answer to a call of {} rows within {} ms",
                plan_->shard(call.shard).num_rows, waited);
    const int32_t first = directory_.first_replica(call.shard);
    for (int32_t r = first; r < first + directory_.num_replicas(call.shard); ++r) {
      const ExpertStream* stream = links_.stream(r);
      if (stream != nullptr && stream->state() == ExpertStream::State::kBusy) {
        links_.Drop(r, status);
      }
    }
    return Lost(call);
  }

  absl::Status Lost(Call& call) {
    call.metrics.failures.Increment();
    // A call that every host refuses is a fault of ours, not of the hosts.
    const bool refused = call.error.code() == absl::StatusCode::kInvalidArgument;
    return StatusF(refused ? absl::StatusCode::kInternal : absl::StatusCode::kUnavailable,
                   "layer {}: no replica answers: {}", batch_.layer,
                   directory_.ShardState(call.shard));
  }

  void End() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (const auto& call : calls_) {
      call->attempts.clear();
      call->activations = grpc::Slice();
    }
    shared_slice_ = grpc::Slice();
    under_way_ = false;
    links_.EndTurn();
  }

  const Options options_;
  ExpertDirectory& directory_;
  ExpertLinks& links_;
  const int32_t hidden_size_;
  std::optional<DispatchPlan> plan_;
  std::vector<std::unique_ptr<Call>> calls_;  // by shard
  uint64_t last_sequence_ = 0;
  Clock::duration combine_time_{0};

  bool under_way_ = false;
  Batch batch_;
  std::optional<LentPayload> lent_;
  PayloadBuffer shared_;
  grpc::Slice shared_slice_;
  const std::byte* source_ = nullptr;
};

GrpcTransport::GrpcTransport(const Options& options, ExpertDirectory* directory,
                             MetricsRegistry* metrics)
    : impl_(std::make_unique<Impl>(options, directory, metrics)) {}
GrpcTransport::~GrpcTransport() = default;

void GrpcTransport::LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks,
                                   size_t block_bytes) {
  impl_->LendRowsMemory(std::move(blocks), block_bytes);
}
std::byte* GrpcTransport::TakeRowsMemory() { return impl_->TakeRowsMemory(); }
absl::Status GrpcTransport::Dispatch(const Batch& batch) { return impl_->Dispatch(batch); }
absl::Status GrpcTransport::Combine(float* out) { return impl_->Combine(out); }
absl::Duration GrpcTransport::CombineTime() const { return impl_->CombineTime(); }
absl::Status GrpcTransport::Ready() const { return impl_->Ready(); }
absl::Status GrpcTransport::WaitReady(absl::Time deadline) { return impl_->WaitReady(deadline); }

}  // namespace banyan::trunk
