#include "services/trunk/experts/grpc_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/lent_payload.h"
#include "common/rpc/payload_buffer.h"

namespace banyan::trunk {
namespace {

using Clock = QueuePoller::Clock;

static_assert(kOtherShard == kNoExpert);

// How long the wait for answers may sleep before it looks for newly opened streams.
constexpr std::chrono::milliseconds kLook(20);

// One CPU copies some 10 GB/s: 16 MB of sums would take as long as the trunk's part of their layer.
constexpr size_t kParallelBytes = size_t{1} << 20;
constexpr int kMostCopiers = 4;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

struct ShardMetrics {
  ShardMetrics(MetricsRegistry& registry, int32_t shard)
      : ShardMetrics(registry, MetricLabels{{"shard", std::to_string(shard)}}) {}

  HotHistogram& total;
  HotHistogram& queue;
  HotHistogram& compute;
  HotHistogram& transport;
  HotCounter& rows;
  HotCounter& shm_calls;
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
        shm_calls(registry.HotCounter("banyan_trunk_expert_shm_calls_total",
                                      "Expert calls sent through shared memory.", labels)),
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
        hidden_size_(directory->hidden_size()),
        copiers_({.num_threads = std::min(kMostCopiers, UsableCpuCount()),
                  .spin = absl::ZeroDuration()}) {
    for (int32_t shard = 0; shard < directory->num_shards(); ++shard) {
      shards_.push_back(std::make_unique<Shard>(shard, *metrics));
      for (UnderWay& batch : batches_) {
        batch.calls.push_back(std::make_unique<Call>(shards_.back().get(), hidden_size_));
      }
    }
  }

  void LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks, size_t block_bytes) {
    lent_.emplace(std::move(blocks), block_bytes);
  }
  std::byte* TakeRowsMemory() {
    CHECK(num_under_way_ < kMaxBatchesUnderWay);
    return lent_.has_value() ? lent_->Take() : nullptr;
  }

  absl::Status Dispatch(const Batch& batch) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    CHECK(num_under_way_ < kMaxBatchesUnderWay && batch.num_rows > 0);
    CHECK(batch.activations_dtype == DType::kF32 || batch.activations_dtype == DType::kBF16);
    UnderWay& next =
        batches_[static_cast<size_t>((oldest_ + num_under_way_) % kMaxBatchesUnderWay)];
    if (!next.plan.has_value()) {
      RETURN_IF_ERROR(directory_.Ready());
      next.plan.emplace(directory_.ExpertRanges(), directory_.num_experts());
    }
    next.batch = batch;
    next.plan->Build(batch.num_rows, batch.top_k, batch.expert_ids, batch.weights);
    PrepareActivations(next);
    if (num_under_way_ == 0) links_.TakeTurn();
    // Replies that are there, and those to calls that were over when they came.
    for (bool any = true; any;) {
      if (ExpertStream* stream = links_.Poll(&any); stream != nullptr) OnReply(stream);
    }
    ++num_under_way_;
    const Clock::time_point now = Clock::now();
    for (const auto& call : next.calls) {
      if (absl::Status status = Start(next, *call, now); !status.ok()) {
        End(next);
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Combine(float* out) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    CHECK(num_under_way_ > 0);
    UnderWay& batch = batches_[static_cast<size_t>(oldest_)];
    const Clock::time_point start = Clock::now();
    absl::Status status = Collect(batch, out);
    oldest_ = (oldest_ + 1) % kMaxBatchesUnderWay;
    End(batch);
    combine_time_ += Clock::now() - start;
    return status;
  }

  void Abandon() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    while (num_under_way_ > 0) {
      UnderWay& batch = batches_[static_cast<size_t>(oldest_)];
      oldest_ = (oldest_ + 1) % kMaxBatchesUnderWay;
      End(batch);
    }
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

  struct Shard {
    Shard(int32_t shard_index, MetricsRegistry& registry)
        : index(shard_index), metrics(registry, shard_index) {}

    const int32_t index;
    ShardMetrics metrics;
    int32_t preferred = 0;     // replica that answered last
    int64_t traced_step = -1;  // the last step whose trace has been sent
  };

  // What a batch asks of one shard.
  struct Call {
    Call(Shard* asked_shard, int32_t hidden_size) : shard(asked_shard), parser(hidden_size) {}

    Shard* const shard;
    ForwardFrameParser parser;  // owns the reply until it is added
    PayloadBuffer gathered;

    // Of this batch:
    grpc::Slice activations;
    std::string_view trace;         // of every attempt
    std::vector<Attempt> attempts;  // under way
    std::vector<int32_t> asked;     // every replica of an attempt
    Clock::time_point start, resend_at, give_up_at;
    bool done = true;
    ForwardResponseView reply;
    absl::Status error;  // of the last attempt that failed

    int32_t index() const { return shard->index; }
  };

  // A batch between Dispatch and the end of its Combine, and what is kept for the next one.
  struct UnderWay {
    Batch batch;
    std::optional<DispatchPlan> plan;
    std::vector<std::unique_ptr<Call>> calls;  // by shard
    PayloadBuffer shared;
    grpc::Slice shared_slice;
    const std::byte* source = nullptr;

    const DispatchPlan::ShardRows& rows(const Call& call) const {
      return plan->shard(call.index());
    }
  };

  // Calls visit(batch, call) for every call that is not done, of the oldest batch first.
  template <typename Visit>
  absl::Status ForEachAwaited(const Visit& visit) {
    for (int32_t i = 0; i < num_under_way_; ++i) {
      UnderWay& batch = batches_[static_cast<size_t>((oldest_ + i) % kMaxBatchesUnderWay)];
      for (const auto& call : batch.calls) {
        if (!call->done) RETURN_IF_ERROR(visit(batch, *call));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Collect(UnderWay& batch, float* out) {
    size_t added = 0;
    bool written = false;
    while (true) {
      // In shard order, each as soon as those before it are there.
      for (; added < batch.calls.size() && batch.calls[added]->done; ++added) {
        Add(batch, *batch.calls[added], &written, out);
      }
      if (added == batch.calls.size()) break;
      bool any = false;
      ExpertStream* stream = links_.Next(NextLimit(), &any);
      if (stream != nullptr && OnReply(stream)) continue;
      RETURN_IF_ERROR(CheckCalls());
    }
    if (!written) Clear(batch, out);
    return absl::OkStatus();
  }

  void PrepareActivations(UnderWay& next) {
    next.source = static_cast<const std::byte*>(next.batch.activations);
    next.shared_slice = lent_.has_value() && next.source == lent_->taken()
                            ? lent_->Share(ActivationBytes(next))
                            : grpc::Slice();
  }

  size_t ActivationBytes(const UnderWay& batch) const {
    return static_cast<size_t>(batch.batch.num_rows) * RowBytes(batch.batch);
  }

  // For a frame. gRPC may hold the bytes longer than the batch lives, when a replica hangs: what
  // does not lie in memory that waits for it is copied, once.
  const grpc::Slice& FrameActivations(UnderWay& batch, Call& call) {
    if (call.activations.size() > 0) return call.activations;
    const DispatchPlan::ShardRows& rows = batch.rows(call);
    if (!rows.all_rows) {
      const size_t row_bytes = RowBytes(batch.batch);
      const size_t bytes = static_cast<size_t>(rows.num_rows) * row_bytes;
      Gather(rows, batch.source, row_bytes, call.gathered.Prepare(bytes).data());
      call.activations = call.gathered.Share(bytes);
      return call.activations;
    }
    if (batch.shared_slice.size() == 0) {
      const size_t bytes = ActivationBytes(batch);
      std::memcpy(batch.shared.Prepare(bytes).data(), batch.source, bytes);
      batch.shared_slice = batch.shared.Share(bytes);
    }
    call.activations = batch.shared_slice;
    return call.activations;
  }

  size_t RowBytes(const Batch& batch) const {
    return static_cast<size_t>(hidden_size_) * DTypeSizeBytes(batch.activations_dtype);
  }

  absl::Status Start(UnderWay& batch, Call& call, Clock::time_point now) {
    const DispatchPlan::ShardRows& rows = batch.rows(call);
    Shard& shard = *call.shard;
    call.attempts.clear();
    call.asked.clear();
    call.done = rows.num_rows == 0;
    call.reply = {};
    call.error = absl::OkStatus();
    if (call.done) return absl::OkStatus();
    call.trace = {};
    if (!batch.batch.trace.empty() && shard.traced_step != batch.batch.step_id) {
      call.trace = batch.batch.trace;
      shard.traced_step = batch.batch.step_id;
    }
    call.activations = grpc::Slice();
    const int32_t to_compute = rows.num_rows + RowsBefore(batch, shard);
    call.start = now;
    call.resend_at = now + Limit(options_.resend_after, options_.resend_after_per_row, to_compute);
    call.give_up_at =
        now + Limit(options_.give_up_after, options_.give_up_after_per_row, to_compute);
    if (TrySend(batch, call, now) || SomeReplicaIsBusy(call)) return absl::OkStatus();
    return Lost(batch, call);
  }

  // Rows that the shard computes before those of `last`.
  int32_t RowsBefore(const UnderWay& last, const Shard& shard) {
    int32_t rows = 0;
    ForEachAwaited([&](UnderWay& batch, Call& call) {
      if (&batch != &last && call.shard == &shard) rows += batch.rows(call).num_rows;
      return absl::OkStatus();
    }).IgnoreError();
    return rows;
  }

  static Clock::duration Limit(absl::Duration base, absl::Duration per_row, int32_t num_rows) {
    return absl::ToChronoNanoseconds(base + per_row * num_rows);
  }

  // Of a call that is under way.
  bool IsAwaited(int32_t replica, uint64_t sequence) {
    bool found = false;
    ForEachAwaited([&](UnderWay&, Call& call) {
      for (const Attempt& attempt : call.attempts) {
        found |= attempt.replica == replica && attempt.sequence == sequence;
      }
      return absl::OkStatus();
    }).IgnoreError();
    return found;
  }

  // Takes a call, and waits for no answer to one that is over.
  bool IsFree(ExpertStream* stream) {
    if (stream == nullptr || !stream->MaySend()) return false;
    const auto late = [&](uint64_t sequence) { return !IsAwaited(stream->replica(), sequence); };
    return std::none_of(stream->awaited().begin(), stream->awaited().end(), late);
  }

  // To a replica that was not asked yet, the one that answered last first.
  bool TrySend(UnderWay& batch, Call& call, Clock::time_point now) {
    const int32_t shard = call.index();
    const int32_t count = directory_.num_replicas(shard);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t replica = directory_.first_replica(shard) + (call.shard->preferred + i) % count;
      if (std::find(call.asked.begin(), call.asked.end(), replica) != call.asked.end()) continue;
      ExpertStream* stream = links_.stream(replica);
      if (!IsFree(stream)) continue;
      Send(batch, call, stream);
      call.attempts.push_back({replica, last_sequence_, now});
      call.asked.push_back(replica);
      call.shard->metrics.rows.Increment(batch.rows(call).num_rows);
      return true;
    }
    return false;
  }

  void Send(UnderWay& batch, Call& call, ExpertStream* stream) {
    const DispatchPlan::ShardRows& rows = batch.rows(call);
    const bool f32 = batch.batch.activations_dtype == DType::kF32;
    const ForwardRequestHeader header = {.sequence = ++last_sequence_,
                                         .step = static_cast<uint64_t>(batch.batch.step_id),
                                         .layer = static_cast<uint32_t>(batch.batch.layer),
                                         .num_rows = static_cast<uint32_t>(rows.num_rows),
                                         .top_k = static_cast<uint32_t>(batch.batch.top_k),
                                         .flags = (f32 ? uint32_t{kActivationsF32} : 0u) |
                                                  (options_.reply_f32 ? uint32_t{kReplyF32} : 0u),
                                         .attempt = static_cast<uint32_t>(call.asked.size())};
    ShardMetrics& metrics = call.shard->metrics;
    if (ShmRingCaller* ring = stream->ring(); ring != nullptr) {
      const size_t row_bytes = RowBytes(batch.batch);
      const size_t bytes = static_cast<size_t>(rows.num_rows) * row_bytes;
      Gather(rows, batch.source, row_bytes, ring->Rows());
      stream->Post(header, rows.expert_ids, rows.weights, call.trace);
      metrics.shm_calls.Increment();
      metrics.sent_bytes.Increment(static_cast<double>(bytes) +
                                   static_cast<double>(std::span(rows.expert_ids).size_bytes()) +
                                   static_cast<double>(std::span(rows.weights).size_bytes()));
      return;
    }
    const grpc::ByteBuffer frame = MakeForwardRequest(header, rows.expert_ids, rows.weights,
                                                      FrameActivations(batch, call), call.trace);
    stream->Send(frame, header.sequence);
    metrics.sent_bytes.Increment(static_cast<double>(frame.Length()));
  }

  // A stream still waits for the answer to a call that is over; it may come back in time.
  bool SomeReplicaIsBusy(const Call& call) {
    const int32_t first = directory_.first_replica(call.index());
    for (int32_t r = first; r < first + directory_.num_replicas(call.index()); ++r) {
      if (IsBusy(links_.stream(r))) return true;
    }
    return false;
  }

  static bool IsBusy(const ExpertStream* stream) {
    return stream != nullptr && stream->state() == ExpertStream::State::kReady &&
           !stream->awaited().empty();
  }

  // False when the reply broke a rule and its stream was ended.
  bool OnReply(ExpertStream* stream) {
    const ExpertStream::Reply reply = stream->TakeReply();
    const auto is_its = [&](const Attempt& attempt) {
      return attempt.replica == stream->replica() && attempt.sequence == reply.sequence;
    };
    bool found = false;
    absl::Status refused = ForEachAwaited([&](UnderWay& batch, Call& call) {
      const auto attempt = std::find_if(call.attempts.begin(), call.attempts.end(), is_its);
      if (found || attempt == call.attempts.end()) return absl::OkStatus();
      found = true;
      absl::Status status = Accept(batch, call, *attempt, reply);
      if (status.ok()) {
        call.attempts.clear();  // other attempts are late from now on
      } else {
        call.error = status;
      }
      return status;
    });
    if (!refused.ok()) {
      links_.Drop(stream->replica(), refused);  // CheckCalls sees that the attempt is lost
      return false;
    }
    for (const auto& shard : shards_) {
      const int32_t place = stream->replica() - directory_.first_replica(shard->index);
      if (!found && place >= 0 && place < directory_.num_replicas(shard->index)) {
        shard->metrics.late_replies.Increment();
      }
    }
    return true;
  }

  absl::Status Accept(const UnderWay& batch, Call& call, const Attempt& attempt,
                      const ExpertStream::Reply& reply) {
    if (reply.in_ring.has_value()) {
      call.reply = *reply.in_ring;
    } else {
      ASSIGN_OR_RETURN(call.reply, call.parser.ParseResponse(reply.frame));
    }
    call.shard->metrics.received_bytes.Increment(
        static_cast<double>(call.reply.partial_sums.size()));
    const ForwardResponseHeader& header = call.reply.header;
    const auto expected_rows = static_cast<uint32_t>(batch.rows(call).num_rows);
    const uint32_t expected_flags = options_.reply_f32 ? uint32_t{kReplyF32} : 0u;
    if (header.sequence != attempt.sequence || header.num_rows != expected_rows ||
        header.flags != expected_flags) {
      return InvalidArgumentF(
          "answered sequence {}, {} rows, flags {:#x}; expected sequence {}, {} rows, flags {:#x}",
          header.sequence, header.num_rows, header.flags, attempt.sequence, expected_rows,
          expected_flags);
    }
    call.done = true;
    call.shard->preferred = attempt.replica - directory_.first_replica(call.index());
    const ShardMetrics& metrics = call.shard->metrics;
    const double total = Seconds(Clock::now() - attempt.sent);
    const double queue = header.queue_ns * 1e-9;
    const double compute = header.compute_ns * 1e-9;
    metrics.total.Observe(total);
    metrics.queue.Observe(queue);
    metrics.compute.Observe(compute);
    metrics.transport.Observe(std::max(0.0, total - queue - compute));
    return absl::OkStatus();
  }

  // Calls body(range) for all of num_rows rows, several ranges at once where `bytes` are many.
  template <typename Body>
  void ForRows(int32_t num_rows, size_t bytes, const Body& body) {
    constexpr int32_t kRowsAtOnce = 64;
    if (bytes < kParallelBytes) return body(RowRange{0, num_rows});
    copiers_.ParallelFor((num_rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t i, int) {
      const auto first = static_cast<int32_t>(i) * kRowsAtOnce;
      body(RowRange{first, std::min(first + kRowsAtOnce, num_rows)});
    });
  }

  void Gather(const DispatchPlan::ShardRows& rows, const std::byte* from, size_t row_bytes,
              std::byte* to) {
    ForRows(rows.num_rows, static_cast<size_t>(rows.num_rows) * row_bytes,
            [&](RowRange range) { GatherRows(rows, range, from, row_bytes, to); });
  }

  // *written: out holds sums, not what was there before.
  void Add(const UnderWay& batch, const Call& call, bool* written, float* out) {
    const DispatchPlan::ShardRows& rows = batch.rows(call);
    if (rows.num_rows == 0) return;
    const std::byte* const sums = call.reply.partial_sums.data();
    const auto width = static_cast<size_t>(hidden_size_);
    const bool first = !std::exchange(*written, true);
    const bool as_they_are = first && rows.all_rows && options_.reply_f32;
    if (first && !as_they_are) Clear(batch, out);
    ForRows(rows.num_rows, call.reply.partial_sums.size(), [&](RowRange range) {
      if (as_they_are) {
        const size_t at = static_cast<size_t>(range.first) * width;
        std::memcpy(out + at, sums + at * sizeof(float),
                    static_cast<size_t>(range.end - range.first) * width * sizeof(float));
      } else if (options_.reply_f32) {
        AddPartialRowsF32(rows, range, sums, hidden_size_, out);
      } else {
        AddPartialRowsBF16(rows, range, sums, hidden_size_, out);
      }
    });
  }

  void Clear(const UnderWay& batch, float* out) {
    const auto width = static_cast<size_t>(hidden_size_);
    const int32_t num_rows = batch.batch.num_rows;
    ForRows(num_rows, static_cast<size_t>(num_rows) * width * sizeof(float), [&](RowRange range) {
      std::memset(out + static_cast<size_t>(range.first) * width, 0,
                  static_cast<size_t>(range.end - range.first) * width * sizeof(float));
    });
  }

  Clock::time_point NextLimit() {
    Clock::time_point limit = Clock::now() + kLook;
    ForEachAwaited([&](UnderWay&, Call& call) {
      limit = std::min(limit, call.give_up_at);
      if (directory_.num_replicas(call.index()) > 1) limit = std::min(limit, call.resend_at);
      return absl::OkStatus();
    }).IgnoreError();
    return limit;
  }

  // Attempts whose stream is gone, answers that are late, calls that nobody will answer.
  absl::Status CheckCalls() {
    const Clock::time_point now = Clock::now();
    return ForEachAwaited([&](UnderWay& batch, Call& call) { return CheckCall(batch, call, now); });
  }

  absl::Status CheckCall(UnderWay& batch, Call& call, Clock::time_point now) {
    const size_t before = call.attempts.size();
    const auto is_gone = [this](const Attempt& attempt) {
      const ExpertStream* stream = links_.stream(attempt.replica);
      return stream == nullptr || !stream->Awaits(attempt.sequence);
    };
    call.attempts.erase(std::remove_if(call.attempts.begin(), call.attempts.end(), is_gone),
                        call.attempts.end());
    const bool lost = call.attempts.size() < before;
    if (now >= call.give_up_at) return GiveUp(batch, call, now);
    if (call.attempts.empty()) {
      const bool again = !call.asked.empty();
      if (TrySend(batch, call, now)) {
        if (again) call.shard->metrics.resends_lost.Increment();
      } else if (!SomeReplicaIsBusy(call)) {
        return Lost(batch, call);
      }
    } else if (!lost && now >= call.resend_at) {
      call.resend_at = now + kLook;  // when no other replica is free now
      if (TrySend(batch, call, now)) {
        call.shard->metrics.resends_late.Increment();
        LogWarning("expert_call_late",
                   {{"shard", call.index()},
                    {"layer", batch.batch.layer},
                    {"asked", directory_.address(call.attempts.front().replica)},
                    {"next", directory_.address(call.attempts.back().replica)}});
      }
    }
    return absl::OkStatus();
  }

  absl::Status GiveUp(const UnderWay& batch, Call& call, Clock::time_point now) {
    const auto waited =
        std::chrono::duration_cast<std::chrono::milliseconds>(now - call.start).count();
    const absl::Status status =
        StatusF(absl::StatusCode::kUnavailable, "no answer to a call of {} rows within {} ms",
                batch.rows(call).num_rows, waited);
    const int32_t first = directory_.first_replica(call.index());
    for (int32_t r = first; r < first + directory_.num_replicas(call.index()); ++r) {
      if (IsBusy(links_.stream(r))) links_.Drop(r, status);
    }
    return Lost(batch, call);
  }

  absl::Status Lost(const UnderWay& batch, Call& call) {
    call.shard->metrics.failures.Increment();
    // A call that every host refuses is a fault of ours, not of the hosts.
    const bool refused = call.error.code() == absl::StatusCode::kInvalidArgument;
    return StatusF(refused ? absl::StatusCode::kInternal : absl::StatusCode::kUnavailable,
                   "layer {}: no replica answers: {}", batch.batch.layer,
                   directory_.ShardState(call.index()));
  }

  // The batch is under way no more; whoever calls has taken it out of the turn.
  void End(UnderWay& batch) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (const auto& call : batch.calls) {
      call->attempts.clear();
      call->activations = grpc::Slice();
      call->done = true;
    }
    batch.shared_slice = grpc::Slice();
    if (--num_under_way_ == 0) links_.EndTurn();
  }

  const Options options_;
  ExpertDirectory& directory_;
  ExpertLinks& links_;
  const int32_t hidden_size_;
  std::vector<std::unique_ptr<Shard>> shards_;
  WorkerPool copiers_;  // of many rows: the experts' CPUs, which have nothing to do then
  uint64_t last_sequence_ = 0;
  Clock::duration combine_time_{0};

  std::array<UnderWay, kMaxBatchesUnderWay> batches_;  // in turn
  int32_t oldest_ = 0;                                 // of those under way
  int32_t num_under_way_ = 0;
  std::optional<LentPayload> lent_;
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
void GrpcTransport::Abandon() { impl_->Abandon(); }
absl::Duration GrpcTransport::CombineTime() const { return impl_->CombineTime(); }
absl::Status GrpcTransport::Ready() const { return impl_->Ready(); }
absl::Status GrpcTransport::WaitReady(absl::Time deadline) { return impl_->WaitReady(deadline); }

}  // namespace banyan::trunk
