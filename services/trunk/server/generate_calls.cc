#include "services/trunk/server/generate_calls.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/strings.h"
#include "common/base/trace_context.h"
#include "common/rpc/grpc_status.h"
#include "proto/inference/v1/inference.grpc.pb.h"
#include "services/trunk/server/answer_buffer.h"
#include "services/trunk/server/prompt.h"
#include "services/trunk/server/request_validation.h"

namespace banyan::trunk {
namespace {

// Accepting slots: calls that arrive between two turns of the loop wait for one inside gRPC.
constexpr int kAcceptSlots = 32;

// Tells clients that retry by themselves (gRFC A6) when to.
constexpr char kRetryPushbackMs[] = "1000";

absl::Time DeadlineOf(const grpc::ServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture()
                                                                  : absl::FromChrono(deadline);
}

// Of the client's metadata; "" when there is none that is valid, for a request is served all the
// same. The standard forbids to guess among several.
std::string TraceparentOf(const grpc::ServerContext& context, std::string_view request_id) {
  const auto [begin, end] = context.client_metadata().equal_range("traceparent");
  if (begin == end) return "";
  absl::StatusOr<std::string> parsed = InvalidArgumentF("traceparent given more than once");
  if (std::next(begin) == end) {
    parsed = ParseTraceparent(std::string_view(begin->second.data(), begin->second.size()));
  }
  if (parsed.ok()) return *std::move(parsed);
  LogDebug("traceparent_ignored",
           {{"request_id", request_id}, {"reason", parsed.status().message()}});
  return "";
}

LogLevel LevelOf(std::string_view outcome) {
  if (outcome == "overload") return LogLevel::kDebug;  // summed up in requests_refused
  if (outcome == "ok" || outcome == "cancelled" || outcome == "invalid") return LogLevel::kInfo;
  return LogLevel::kWarning;
}

}  // namespace

// Touched by the queue's thread only, except by the prompt worker that prepares it: `request` and
// `resolved` are that worker's while `preparing`.
struct GenerateCalls::Call {
  grpc::ServerContext context;
  inference::v1::GenerateRequest request;
  Writer writer{&context};
  Tag accept_tag{this, Operation::kAccept};
  Tag done_tag{this, Operation::kDone};
  Tag write_tag{this, Operation::kWrite};

  absl::Time arrived;
  std::string request_id;
  std::string traceparent;  // "": none
  Request resolved;
  const ServingModel* model = nullptr;
  std::shared_ptr<AnswerBuffer> answer;
  int64_t handle = -1;  // the engine's

  bool accepted = false;
  bool working = false;    // counted in num_working_
  bool preparing = false;  // a prompt worker has it
  bool writing = false;    // an operation is under way since write_since
  absl::Time write_since;
  bool wrote = false;   // at least one message
  bool ended = false;   // the last operation has been posted
  bool broken = false;  // nothing more can be written
  bool done = false;    // gRPC has no more use for it
  bool recorded = false;
};

GenerateCalls::GenerateCalls(const Options& options,
                             std::unique_ptr<grpc::ServerCompletionQueue> queue,
                             PromptWorkers* workers, RequestMetrics* metrics, GetModel get_model)
    : options_(options),
      queue_(std::move(queue)),
      workers_(workers),
      metrics_(metrics),
      get_model_(std::move(get_model)),
      next_sweep_(absl::InfiniteFuture()) {}

GenerateCalls::~GenerateCalls() { CHECK(!thread_.joinable()); }

void GenerateCalls::Start(Accept accept) {
  accept_ = std::move(accept);
  for (int i = 0; i < kAcceptSlots; ++i) PostAccept();
  thread_ = std::thread([this] { Run(); });
}

void GenerateCalls::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  queue_->Shutdown();
  if (thread_.joinable()) thread_.join();
}

void GenerateCalls::Post(Note note) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  notes_.push_back(std::move(note));
  if (wake_pending_) return;
  wake_pending_ = true;
  alarm_.Set(queue_.get(), gpr_inf_past(GPR_CLOCK_REALTIME), &wake_tag_);
}

std::vector<GenerateCalls::Note> GenerateCalls::TakeNotes() {
  absl::MutexLock lock(&mutex_);
  wake_pending_ = false;
  return std::exchange(notes_, {});
}

void GenerateCalls::Run() {
  while (true) {
    void* raw_tag = nullptr;
    bool ok = false;
    const auto deadline = next_sweep_ == absl::InfiniteFuture()
                              ? std::chrono::system_clock::time_point::max()
                              : absl::ToChronoTime(next_sweep_);
    const grpc::CompletionQueue::NextStatus next = queue_->AsyncNext(&raw_tag, &ok, deadline);
    if (next == grpc::CompletionQueue::SHUTDOWN) break;
    const absl::Time now = absl::Now();
    if (now >= next_sweep_) EndSlowClients(now);
    if (next == grpc::CompletionQueue::TIMEOUT) continue;

    const Tag tag = *static_cast<Tag*>(raw_tag);
    if (tag.operation == Operation::kWake) {
      for (Note& note : TakeNotes()) {
        note.action(*note.call);
        EraseIfOver(*note.call);
      }
      continue;
    }
    Call& call = *tag.call;
    switch (tag.operation) {
      case Operation::kAccept:
        if (!ok) {  // the server shuts down: this slot never was a call
          stopping_ = true;
          calls_.erase(&call);
          continue;
        }
        PostAccept();
        OnAccepted(call);
        break;
      case Operation::kDone:
        OnDone(call);
        break;
      case Operation::kWrite:
        call.writing = false;
        if (!ok) call.broken = true;
        Advance(call);
        break;
      case Operation::kWake:
        break;
    }
    EraseIfOver(call);
  }
  calls_.clear();
}

void GenerateCalls::PostAccept() {
  if (stopping_) return;
  auto call = std::make_shared<Call>();
  Call* const raw = call.get();
  calls_.emplace(raw, std::move(call));
  raw->context.AsyncNotifyWhenDone(&raw->done_tag);
  accept_(&raw->context, &raw->request, &raw->writer, queue_.get(), &raw->accept_tag);
}

void GenerateCalls::OnAccepted(Call& call) {
  call.accepted = true;
  call.arrived = absl::Now();
  metrics_->active.Increment();
  if (next_sweep_ == absl::InfiniteFuture()) {
    next_sweep_ = call.arrived + options_.slow_client_timeout / 8;
  }
  call.request_id = call.request.request_id();
  if (call.request_id.empty()) {
    call.request_id = NewRequestId();
    call.request.set_request_id(call.request_id);
  } else if (absl::Status status = CheckRequestId(call.request_id); !status.ok()) {
    call.request_id = NewRequestId();  // for the log; theirs is not fit for it
    return End(call, status);
  }
  call.traceparent = TraceparentOf(call.context, call.request_id);
  absl::StatusOr<const ServingModel*> model = get_model_();
  if (!model.ok()) return End(call, model.status());
  if (num_working_ >= options_.max_calls) {
    return End(call, StatusF(absl::StatusCode::kResourceExhausted,
                             "{} requests are being served or wait, the most this server takes; "
                             "retry in a second, or raise --max_queued_requests",
                             num_working_));
  }
  absl::StatusOr<Request> resolved = ResolveRequest(call.request, (*model)->facts);
  if (!resolved.ok()) return End(call, resolved.status());
  call.resolved = *std::move(resolved);
  call.resolved.deadline = DeadlineOf(call.context);
  call.resolved.traceparent = call.traceparent;
  call.working = true;
  ++num_working_;
  Prepare(calls_.at(&call), *model);
}

// The worker renders, tokenises and submits, then hands the call back to the queue's thread.
void GenerateCalls::Prepare(const std::shared_ptr<Call>& call, const ServingModel* model) {
  call->model = model;
  call->preparing = true;
  const bool queued = workers_->Submit(PromptBytes(call->request), [this, call, model] {
    std::shared_ptr<AnswerBuffer> answer;
    int32_t prompt_tokens = 0;
    const absl::StatusOr<int64_t> handle = [&]() -> absl::StatusOr<int64_t> {
      if (absl::Now() >= call->resolved.deadline) {
        return absl::DeadlineExceededError("the deadline passed before the prompt was read");
      }
      absl::StatusOr<std::vector<int32_t>> ids = PromptIds(call->request, model->facts);
      if (!ids.ok()) return ids.status();
      AnswerBuffer::Options options;
      options.request_id = call->request_id;
      options.prompt_tokens = prompt_tokens = static_cast<int32_t>(ids->size());
      options.stop.assign(call->request.stop().begin(), call->request.stop().end());
      options.tokenizer =
          model->facts.codec == nullptr ? nullptr : &model->facts.codec->tokenizer();
      const std::weak_ptr<Call> weak = call;
      answer = std::make_shared<AnswerBuffer>(std::move(options), [this, weak] {
        if (auto woken = weak.lock()) {
          Post({std::move(woken), [this](Call& c) { Advance(c); }});
        }
      });
      SetPrompt(*std::move(ids), model->facts, call->resolved);
      return model->engine->Submit(std::move(call->resolved), answer);
    }();
    call->request.Clear();  // may be megabytes
    metrics_->prepare.Observe(absl::ToDoubleSeconds(absl::Now() - call->arrived));
    Post({call, [this, handle, answer, prompt_tokens](Call& c) {
            c.preparing = false;
            if (!handle.ok()) return End(c, handle.status());
            LogInfo("request_started", {{"request_id", c.request_id},
                                        {"trace_id", LogValue::NonEmpty(TraceId(c.traceparent))},
                                        {"prompt_tokens", prompt_tokens},
                                        {"peer", c.context.peer()}});
            c.handle = *handle;
            c.answer = answer;
            if (c.done) return CancelEngine(c);
            Advance(c);
          }});
  });
  if (!queued) {
    call->preparing = false;
    End(*call, StatusF(absl::StatusCode::kResourceExhausted,
                       "{} prompts wait to be tokenised, the most this server takes; retry in a "
                       "second",
                       workers_->queued()));
  }
}

void GenerateCalls::Advance(Call& call) {
  if (call.writing || call.ended || call.broken || call.done || call.answer == nullptr) return;
  inference::v1::GenerateResponse message;
  const AnswerBuffer::Taken taken = call.answer->Take(message);
  switch (taken) {
    case AnswerBuffer::Taken::kNothing:
      return;
    case AnswerBuffer::Taken::kMessage:
    case AnswerBuffer::Taken::kLast:
      break;
    case AnswerBuffer::Taken::kEnd:
      return End(call, call.answer->status());
    case AnswerBuffer::Taken::kOverflow:
      CancelEngine(call);
      return End(call, absl::ResourceExhaustedError(
                           "the client reads more slowly than the answer grows, and what waited "
                           "for it has become too large; read faster, or ask for fewer logprobs"));
  }
  if (!call.wrote) {
    call.wrote = true;
    metrics_->first_message.Observe(absl::ToDoubleSeconds(absl::Now() - call.arrived));
  }
  metrics_->messages.Increment();
  if (message.chunk().token_ids_size() > 1) {
    metrics_->coalesced_tokens.Increment(message.chunk().token_ids_size() - 1);
  }
  call.writing = true;
  call.write_since = absl::Now();
  if (taken == AnswerBuffer::Taken::kLast) {
    call.ended = true;
    call.writer.WriteAndFinish(message, grpc::WriteOptions(), grpc::Status::OK, &call.write_tag);
    Record(call, RequestMetrics::Outcome(absl::OkStatus()), absl::OkStatus());
  } else {
    call.writer.Write(message, &call.write_tag);
  }
}

void GenerateCalls::End(Call& call, const absl::Status& status) {
  Record(call, RequestMetrics::Outcome(status), status);
  if (call.ended || call.broken || call.done) return;
  CHECK(!call.writing);
  call.context.AddTrailingMetadata("banyan-request-id", call.request_id);
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    call.context.AddTrailingMetadata("grpc-retry-pushback-ms", kRetryPushbackMs);
  }
  call.ended = true;
  call.writing = true;
  call.write_since = absl::Now();
  call.writer.Finish(ToGrpc(status), &call.write_tag);
}

void GenerateCalls::OnDone(Call& call) {
  call.done = true;
  if (!call.context.IsCancelled()) return;
  // The client went, its deadline passed, or we gave it up.
  CancelEngine(call);
  const bool late = absl::Now() >= DeadlineOf(call.context);
  Record(call, late ? "deadline" : "cancelled",
         late ? absl::DeadlineExceededError("the client's deadline has passed")
              : absl::CancelledError("the client has gone"));
}

void GenerateCalls::CancelEngine(Call& call) {
  if (call.handle >= 0) call.model->engine->Cancel(call.handle);
}

void GenerateCalls::EraseIfOver(Call& call) {
  if (call.accepted && call.done && !call.writing && !call.preparing) calls_.erase(&call);
}

// Once for each call, when its outcome is known.
void GenerateCalls::Record(Call& call, std::string_view outcome, const absl::Status& status) {
  if (call.recorded) return;
  call.recorded = true;
  if (call.working) --num_working_;
  metrics_->active.Decrement();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - call.arrived);
  metrics_->Finished(outcome, seconds);
  if (outcome == "overload") ++num_refused_;
  if (!LogEnabled(LevelOf(outcome))) return;
  const LogField request_id = {"request_id", call.request_id};
  const LogField trace_id = {"trace_id", LogValue::NonEmpty(TraceId(call.traceparent))};
  if (outcome == "ok") {
    const FinishInfo info = call.answer->finish_info();
    const RequestTimings& timings = info.timings;
    LogInfo("request_ended",
            {request_id,
             trace_id,
             {"outcome", outcome},
             {"prompt_tokens", info.prompt_tokens},
             {"completion_tokens", info.completion_tokens},
             {"ttft_ms", absl::ToDoubleMilliseconds(timings.queue + timings.prefill)},
             {"queue_ms", absl::ToDoubleMilliseconds(timings.queue)},
             {"prefill_ms", absl::ToDoubleMilliseconds(timings.prefill)},
             {"decode_ms", absl::ToDoubleMilliseconds(timings.decode)},
             {"seconds", seconds}});
  } else {
    Log(LevelOf(outcome), "request_ended",
        {request_id,
         trace_id,
         {"outcome", outcome},
         {"seconds", seconds},
         {"reason", status.message()}});
  }
}

// Every eighth of the time limit, while there are calls.
void GenerateCalls::EndSlowClients(absl::Time now) {
  bool any = false;
  for (auto& [key, held] : calls_) {
    Call& call = *held;
    if (!call.accepted) continue;
    any = true;
    if (!call.writing || call.done || now - call.write_since < options_.slow_client_timeout) {
      continue;
    }
    const absl::Status status = absl::CancelledError(fmt::format(
        "the client has read nothing for {}", absl::FormatDuration(options_.slow_client_timeout)));
    Record(call, "slow_client", status);
    CancelEngine(call);
    call.broken = true;
    call.context.TryCancel();
  }
  if (num_refused_ > 0) {
    LogWarning("requests_refused",
               {{"count", std::exchange(num_refused_, 0)}, {"working", num_working_}});
  }
  next_sweep_ = any ? now + options_.slow_client_timeout / 8 : absl::InfiniteFuture();
}

}  // namespace banyan::trunk
