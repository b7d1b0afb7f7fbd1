#include "services/expert/server/forward_stream.h"

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/payload_buffer.h"
#include "common/rpc/queue_poller.h"
#include "common/rpc/shm_ring.h"
#include "services/expert/server/call_runner.h"
#include "services/expert/server/ring_server.h"

namespace banyan::expert {
namespace {

using SteadyClock = QueuePoller::Clock;
using NextStatus = grpc::CompletionQueue::NextStatus;

struct Metrics {
  explicit Metrics(MetricsRegistry& registry)
      : received_bytes(registry.HotCounter("banyan_expert_received_bytes_total",
                                           "Bytes of the requests received on Forward streams.")),
        sent_bytes(registry.HotCounter("banyan_expert_sent_bytes_total",
                                       "Bytes of the replies sent on Forward streams.")),
        streams_total(
            registry.Counter("banyan_expert_streams_opened_total", "Forward streams taken.")),
        rings_total(registry.Counter("banyan_expert_shm_rings_opened_total",
                                     "Streams whose calls come through shared memory.")),
        streams(registry.Gauge("banyan_expert_streams", "Forward streams open.")) {}

  HotCounter& received_bytes;
  HotCounter& sent_bytes;
  prometheus::Counter& streams_total;
  prometheus::Counter& rings_total;
  prometheus::Gauge& streams;
};

// One Forward stream. An operation in flight is a bit of `pending`; the object dies when none is
// left after Finish.
struct Stream {
  enum Operation : uint32_t {
    kOpen = 1,
    kMetadata = 2,
    kRead = 4,
    kWrite = 8,
    kFinish = 16,
    kRing = 32,  // the ring's thread runs
  };
  struct Tag {
    Stream* stream;
    Operation operation;
  };

  grpc::ServerContext context;
  ForwardStreamServer::RawStream rpc{&context};
  Tag open{this, kOpen}, metadata{this, kMetadata}, read{this, kRead}, write{this, kWrite},
      finish{this, kFinish}, ring_end{this, kRing};
  uint32_t pending = 0;
  bool finished = false;  // nothing is left but operations in flight

  struct Request {
    grpc::ByteBuffer frame;
    SteadyClock::time_point arrival;
  };
  Request request;             // of the Read that is pending, or that waits
  bool request_waits = false;  // for its turn
  bool behind_reply = false;   // it does until held_reply has left
  bool aside = false;          // an earlier one is being answered by the other thread
  bool closed = false;         // by the trunk: none follows
  CallOrigin origin;
  std::optional<ForwardFrameParser> parser;
  PayloadBuffer sums;
  std::optional<grpc::ByteBuffer> held_reply;  // until the previous one has left
  std::optional<grpc::Status> end;             // likewise, and until the ring's thread has ended

  grpc::Alarm ring_alarm;
  std::unique_ptr<RingServer> ring;
};

}  // namespace

class ForwardStreamServer::Impl {
 public:
  Impl(const Options& options, grpc::ServerBuilder& builder, MetricsRegistry& metrics)
      : options_(options),
        metrics_(metrics),
        runner_(metrics),
        queue_(builder.AddCompletionQueue()),
        poller_(queue_.get(), absl::ToChronoNanoseconds(options.spin)) {}

  ~Impl() { Stop(); }

  void Start(RequestForward request) {
    request_ = std::move(request);
    aside_thread_ = std::thread([this] { AnswerAside(); });
    thread_ = std::thread([this] { Loop(); });
  }

  void SetExecutor(ExpertExecutor* executor) { runner_.SetExecutor(executor); }

  void Drain() {
    absl::MutexLock lock(&mutex_);
    if (draining_.exchange(true) || !thread_.joinable()) return;
    drain_alarm_.Set(queue_.get(), gpr_now(GPR_CLOCK_MONOTONIC), &drain_);
  }

  bool WaitUntilDrained(absl::Time deadline) {
    absl::MutexLock lock(&count_mutex_);
    return count_mutex_.AwaitWithDeadline(absl::Condition(this, &Impl::NoStreams), deadline);
  }

  void Stop() {
    {
      absl::MutexLock lock(&mutex_);
      if (std::exchange(stopped_, true)) return;
      draining_ = true;
      if (thread_.joinable()) {
        stop_alarm_.Set(queue_.get(), gpr_now(GPR_CLOCK_MONOTONIC), &stop_);
      } else {
        queue_->Shutdown();
      }
    }
    if (thread_.joinable()) {
      thread_.join();
      return;
    }
    void* tag;
    bool ok;
    while (queue_->Next(&tag, &ok)) continue;
  }

 private:
  void Loop() {
    RequestStream();
    void* tag = nullptr;
    bool ok = false;
    while (true) {
      const NextStatus status = NextEvent(&tag, &ok);
      if (status == grpc::CompletionQueue::SHUTDOWN) break;
      if (status == grpc::CompletionQueue::GOT_EVENT) {
        OnEvent(static_cast<Stream::Tag*>(tag), ok);
      } else if (!waiting_.empty()) {
        Stream* stream = waiting_.front();
        waiting_.pop_front();
        Run(stream);
      }
    }
    CHECK(streams_.empty() && waiting_.empty() && !aside_.has_value());
    {
      absl::MutexLock lock(&aside_mutex_);
      aside_ends_ = true;
    }
    aside_thread_.join();
  }

  NextStatus NextEvent(void** tag, bool* ok) {
    // The CPUs are the other thread's.
    if (aside_.has_value()) {
      return queue_->Next(tag, ok) ? grpc::CompletionQueue::GOT_EVENT
                                   : grpc::CompletionQueue::SHUTDOWN;
    }
    if (waiting_.empty()) return poller_.Next(tag, ok, SteadyClock::time_point::max());
    // With requests waiting only look: others that have arrived meanwhile take their place.
    return streams_.size() > 1 ? poller_.Poll(tag, ok) : grpc::CompletionQueue::TIMEOUT;
  }

  void OnEvent(Stream::Tag* tag, bool ok) {
    if (tag == &drain_) {
      EndIdleStreams();
      return;
    }
    if (tag == &stop_) {
      stopping_ = true;
      ShutdownWhenEmpty();
      return;
    }
    if (tag == &answered_) {
      OnAnswered();
      return;
    }
    Stream* stream = tag->stream;
    stream->pending &= ~static_cast<uint32_t>(tag->operation);
    switch (tag->operation) {
      case Stream::kOpen:
        OnOpen(stream, ok);
        break;
      case Stream::kRead:
        OnRead(stream, ok);
        break;
      case Stream::kWrite:
        OnWritten(stream);
        break;
      case Stream::kMetadata:
        break;
      case Stream::kRing:
        OnRingEnd(stream);
        break;
      case Stream::kFinish:
        CountStream(-1);
        stream->finished = true;
        break;
    }
    EraseIfOver(stream);
  }

  void EraseIfOver(Stream* stream) {
    if (stream->finished && stream->pending == 0 && !stream->request_waits && !stream->aside) {
      streams_.erase(streams_.find(stream));
      ShutdownWhenEmpty();
    }
  }

  // grpc::Server::Shutdown has ended every call, but their last events are handled here, and some
  // of those start a Finish.
  void ShutdownWhenEmpty() {
    if (stopping_ && streams_.empty()) queue_->Shutdown();
  }

  void CountStream(int change) {
    absl::MutexLock lock(&count_mutex_);
    num_streams_ += change;
    metrics_.streams.Set(num_streams_);
  }
  bool NoStreams() const ABSL_SHARED_LOCKS_REQUIRED(count_mutex_) { return num_streams_ == 0; }

  void RequestStream() {
    auto stream = std::make_unique<Stream>();
    Stream* raw = stream.get();
    streams_.insert(std::move(stream));
    raw->pending |= Stream::kOpen;
    request_(&raw->context, &raw->rpc, queue_.get(), queue_.get(), &raw->open);
  }

  void OnOpen(Stream* stream, bool ok) {
    if (!ok) {  // the server shuts down
      stream->finished = true;
      return;
    }
    metrics_.streams_total.Increment();
    if (options_.inbox != nullptr) options_.inbox->Receive();  // also what is not asked for
    CountStream(+1);
    if (!stopping_) RequestStream();
    const ExpertExecutor* executor = runner_.executor();
    if (draining_) {
      End(stream, Draining());
    } else if (executor == nullptr) {
      End(stream, absl::UnavailableError("this host is loading; WatchLoad tells how far it is"));
    } else if (static_cast<int32_t>(streams_.size()) - 1 > options_.max_streams) {
      End(stream,
          StatusF(absl::StatusCode::kResourceExhausted,
                  "{} Forward streams are open, the most this host serves", options_.max_streams));
    } else {
      stream->origin.peer = stream->context.peer();
      stream->parser.emplace(executor->geometry().hidden_size);
      OpenRing(stream, executor->geometry());
      // Tells the trunk that the stream is served, before its first call.
      stream->context.AddInitialMetadata(kForwardMetadataKey,
                                         std::to_string(kForwardProtocolVersion));
      stream->pending |= Stream::kMetadata;
      stream->rpc.SendInitialMetadata(&stream->metadata);
      Read(stream);
    }
  }

  // Where the trunk offers shared memory and it has come.
  void OpenRing(Stream* stream, const ShardGeometry& geometry) {
    const auto& metadata = stream->context.client_metadata();
    const auto offer = metadata.find(kShmRingMetadataKey);
    if (offer == metadata.end() || options_.inbox == nullptr) return;
    const auto u32 = [](int32_t value) { return static_cast<uint32_t>(value); };
    absl::StatusOr<std::unique_ptr<ShmRingHost>> ring = ShmRingHost::Open(
        *options_.inbox, {offer->second.data(), offer->second.size()},
        {u32(geometry.max_rows), u32(geometry.max_top_k), u32(geometry.hidden_size)});
    if (!ring.ok()) {
      LogInfo("shm_ring_not_opened",
              {{"peer", stream->origin.peer}, {"reason", ring.status().message()}});
      return;
    }
    metrics_.rings_total.Increment();
    stream->context.AddInitialMetadata(kShmRingMetadataKey, "open");
    stream->pending |= Stream::kRing;
    stream->ring = std::make_unique<RingServer>(
        RingServer::Options{.spin = options_.spin,
                            .received_bytes = &metrics_.received_bytes,
                            .sent_bytes = &metrics_.sent_bytes},
        *std::move(ring), stream->origin.peer, &runner_, [this, stream] {
          stream->ring_alarm.Set(queue_.get(), gpr_now(GPR_CLOCK_MONOTONIC), &stream->ring_end);
        });
  }

  void OnRingEnd(Stream* stream) {
    const absl::Status status = stream->ring->End();
    stream->ring.reset();
    if (!stream->end.has_value()) {
      End(stream, status);
    } else if ((stream->pending & Stream::kWrite) == 0) {
      Finish(stream);
    }
  }

  void Read(Stream* stream) {
    stream->pending |= Stream::kRead;
    stream->rpc.Read(&stream->request.frame, &stream->read);
  }

  void OnRead(Stream* stream, bool ok) {
    if (stream->end.has_value()) return;
    if (!ok) {  // the trunk closed the stream, or it broke; then the status reaches nobody
      stream->closed = true;
      if (!stream->aside) End(stream, absl::OkStatus());
      return;
    }
    stream->request.arrival = SteadyClock::now();
    stream->request_waits = true;
    waiting_.push_back(stream);
  }

  void Run(Stream* stream) {
    if (stream->held_reply.has_value() && !stream->end.has_value()) {
      stream->behind_reply = true;
      return;
    }
    stream->request_waits = false;
    if (stream->end.has_value()) {
      EraseIfOver(stream);
      return;
    }
    Stream::Request request = std::move(stream->request);
    stream->request.frame.Clear();
    metrics_.received_bytes.Increment(static_cast<double>(request.frame.Length()));
    if (request.frame.Length() < options_.aside_bytes) {
      OnAnswer(stream, Answer(stream, request));
      return;
    }
    stream->aside = true;
    aside_.emplace(Aside{stream, std::move(request), absl::InternalError("not answered yet")});
    if (!draining_) Read(stream);
    absl::MutexLock lock(&aside_mutex_);
    aside_asked_ = true;
  }

  // The other thread: one request at a time, while the queue's thread touches nothing of the
  // executor's or the parser's.
  void AnswerAside() {
    const auto called = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(aside_mutex_) {
      return aside_asked_ || aside_ends_;
    };
    while (true) {
      {
        absl::MutexLock lock(&aside_mutex_);
        aside_mutex_.Await(absl::Condition(&called));
        if (!aside_asked_) return;
        aside_asked_ = false;
      }
      aside_->reply = Answer(aside_->stream, aside_->request);
      {
        absl::MutexLock lock(&aside_mutex_);
        aside_answered_ = true;
      }
      answered_alarm_.Set(queue_.get(), gpr_now(GPR_CLOCK_MONOTONIC), &answered_);
    }
  }

  void OnAnswered() {
    {
      absl::MutexLock lock(&aside_mutex_);
      CHECK(std::exchange(aside_answered_, false));
    }
    Aside done = *std::move(aside_);
    aside_.reset();
    done.stream->aside = false;
    if (!done.stream->end.has_value()) OnAnswer(done.stream, std::move(done.reply));
    if (done.stream->closed) End(done.stream, absl::OkStatus());
    EraseIfOver(done.stream);
  }

  void OnAnswer(Stream* stream, absl::StatusOr<grpc::ByteBuffer> reply) {
    if (!reply.ok()) {
      End(stream, reply.status());
      return;
    }
    metrics_.sent_bytes.Increment(static_cast<double>(reply->Length()));
    if ((stream->pending & Stream::kWrite) != 0) {
      stream->held_reply = *std::move(reply);
    } else {
      Write(stream, *reply);
    }
  }

  // Write first, then Read: the window update for what was read then travels with the reply, while
  // a Read posted first sends it in a packet of its own and wakes the peer for nothing.
  void Write(Stream* stream, const grpc::ByteBuffer& reply) {
    stream->pending |= Stream::kWrite;
    stream->rpc.Write(reply, &stream->write);
    if (draining_) {
      End(stream, Draining());
    } else if ((stream->pending & Stream::kRead) == 0 && !stream->request_waits &&
               !stream->closed) {
      Read(stream);
    }
  }

  void OnWritten(Stream* stream) {
    if (stream->held_reply.has_value()) {
      const grpc::ByteBuffer reply = *std::exchange(stream->held_reply, std::nullopt);
      Write(stream, reply);
      if (std::exchange(stream->behind_reply, false)) waiting_.push_back(stream);
    } else if (stream->end.has_value() && stream->ring == nullptr) {
      Finish(stream);
    }
  }

  absl::StatusOr<grpc::ByteBuffer> Answer(Stream* stream, const Stream::Request& request) {
    const absl::StatusOr<ForwardRequestView> parsed = stream->parser->ParseRequest(request.frame);
    if (!parsed.ok()) {
      runner_.CountRefused(stream->origin, parsed.status());
      return parsed.status();
    }
    size_t reply_bytes = 0;
    ASSIGN_OR_RETURN(const ForwardResponseHeader answer,
                     runner_.Run(*parsed, request.arrival, &stream->origin, [&](size_t bytes) {
                       reply_bytes = bytes;
                       return stream->sums.Prepare(bytes).data();
                     }));
    return MakeForwardResponse(answer, stream->sums.Share(reply_bytes));
  }

  // Ends the stream once its last reply has left, and the ring has answered.
  void End(Stream* stream, const absl::Status& status) {
    if (stream->end.has_value()) return;
    stream->end = ToGrpc(status);
    if (stream->ring != nullptr) {
      stream->ring->Close();
    } else if ((stream->pending & Stream::kWrite) == 0) {
      Finish(stream);
    }
  }

  void Finish(Stream* stream) {
    stream->pending |= Stream::kFinish;
    stream->rpc.Finish(*stream->end, &stream->finish);
  }

  // Streams that wait for a request; the others end after the answer under way.
  void EndIdleStreams() {
    for (const std::unique_ptr<Stream>& stream : streams_) {
      const bool open = stream->parser.has_value() && (stream->pending & Stream::kOpen) == 0;
      if (open && !stream->request_waits && !stream->held_reply.has_value() && !stream->aside) {
        End(stream.get(), Draining());
      }
    }
  }

  static absl::Status Draining() {
    return absl::UnavailableError("this host is draining: it takes no further calls");
  }

  struct ByAddress {
    using is_transparent = void;
    static const Stream* Address(const std::unique_ptr<Stream>& stream) { return stream.get(); }
    static const Stream* Address(const Stream* stream) { return stream; }
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return Address(a) < Address(b);
    }
  };

  const Options options_;
  Metrics metrics_;
  CallRunner runner_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  QueuePoller poller_;
  absl::Mutex mutex_;  // Drain and Stop
  grpc::Alarm drain_alarm_;
  grpc::Alarm stop_alarm_;
  Stream::Tag drain_{nullptr, Stream::kOpen};  // tags of the alarms
  Stream::Tag stop_{nullptr, Stream::kOpen};
  Stream::Tag answered_{nullptr, Stream::kOpen};
  grpc::Alarm answered_alarm_;
  RequestForward request_;
  std::atomic<bool> draining_{false};
  bool stopped_ = false;
  std::thread thread_;
  std::thread aside_thread_;
  absl::Mutex count_mutex_;
  int num_streams_ ABSL_GUARDED_BY(count_mutex_) = 0;  // open ones

  // Of the queue's thread:
  bool stopping_ = false;
  std::set<std::unique_ptr<Stream>, ByAddress> streams_;  // one of them waits for its trunk
  std::deque<Stream*> waiting_;                           // arrived requests, oldest first
  // What the other thread answers; its own from aside_asked_ until the alarm.
  struct Aside {
    Stream* stream;
    Stream::Request request;
    absl::StatusOr<grpc::ByteBuffer> reply;
  };
  std::optional<Aside> aside_;
  absl::Mutex aside_mutex_;
  bool aside_asked_ ABSL_GUARDED_BY(aside_mutex_) = false;
  bool aside_answered_ ABSL_GUARDED_BY(aside_mutex_) = false;
  bool aside_ends_ ABSL_GUARDED_BY(aside_mutex_) = false;
};

ForwardStreamServer::ForwardStreamServer(const Options& options, grpc::ServerBuilder& builder,
                                         MetricsRegistry& metrics)
    : impl_(std::make_unique<Impl>(options, builder, metrics)) {}
ForwardStreamServer::~ForwardStreamServer() = default;
void ForwardStreamServer::Start(RequestForward request) { impl_->Start(std::move(request)); }
void ForwardStreamServer::SetExecutor(ExpertExecutor* executor) { impl_->SetExecutor(executor); }
void ForwardStreamServer::Drain() { impl_->Drain(); }
bool ForwardStreamServer::WaitUntilDrained(absl::Time deadline) {
  return impl_->WaitUntilDrained(deadline);
}
void ForwardStreamServer::Stop() { impl_->Stop(); }

}  // namespace banyan::expert
