#include "services/trunk/engine/step_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

absl::Duration Since(absl::Time begin, absl::Time end) {
  return begin == absl::InfiniteFuture() || end == absl::InfiniteFuture()
             ? absl::ZeroDuration()
             : std::max(absl::ZeroDuration(), end - begin);
}

}  // namespace

StepEngine::StepEngine(const Options& options, ForwardPass* forward, ExpertTransport* experts,
                       MetricsRegistry* metrics, const Clock* clock)
    : options_(options),
      forward_(forward),
      experts_(experts),
      clock_(clock),
      metrics_(metrics),
      scheduler_({.max_batch_tokens = options.max_batch_tokens,
                  .max_mixed_tokens = options.max_mixed_tokens,
                  .max_sequences = options.max_sequences,
                  .num_slots = forward->limits().num_slots,
                  .num_pages = forward->limits().num_pages}),
      token_stage_(forward, options.sampled_vocab_size, clock) {
  metrics_.kv_pages.Set(forward->limits().num_pages);
  metrics_.slots.Set(forward->limits().num_slots);
  metrics_.queue_limit.Set(options.max_queued_requests);
  metrics_.batch_limit.Set(options.max_batch_tokens);
  UpdateSnapshot();
  thread_ = std::thread(&StepEngine::Run, this);
}

StepEngine::~StepEngine() {
  Drain(absl::InfinitePast());
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

// ---- Intake -------------------------------------------------------------------------------------

absl::Status StepEngine::Validate(const Request& request) const {
  const ForwardPass::Limits& limits = forward_->limits();
  if (request.prompt_ids.empty()) return InvalidArgumentF("empty prompt: expected a token or more");
  if (request.prompt_ids.size() > static_cast<size_t>(options_.max_context_tokens)) {
    return InvalidArgumentF("prompt of {} tokens: the context has room for {}",
                            request.prompt_ids.size(), options_.max_context_tokens);
  }
  for (size_t i = 0; i < request.prompt_ids.size(); ++i) {
    const int32_t id = request.prompt_ids[i];
    if (id < 0 || id >= limits.vocab_size) {
      return InvalidArgumentF("prompt token {} has id {}: expected 0 to {}", i, id,
                              limits.vocab_size - 1);
    }
  }
  if (request.max_new_tokens < 0) {
    return InvalidArgumentF("max_new_tokens {}: expected 0 or more", request.max_new_tokens);
  }
  if (request.num_logprobs < 0 || request.num_logprobs > kMaxLogprobs) {
    return InvalidArgumentF("num_logprobs {}: expected 0 to {}", request.num_logprobs,
                            kMaxLogprobs);
  }
  return ValidateSamplingParams(request.sampling, limits.vocab_size);
}

absl::Status StepEngine::QueueFull() const {
  // Half the queue will have moved up by then.
  const double advice =
      std::clamp(std::ceil(seconds_per_start_ * options_.max_queued_requests / 2), 1.0, 60.0);
  return StatusF(absl::StatusCode::kResourceExhausted,
                 "queue is full: {} requests wait (limit {}); retry in about {:.0f} s", num_queued_,
                 options_.max_queued_requests, advice);
}

absl::StatusOr<int64_t> StepEngine::Submit(Request request,
                                           std::shared_ptr<RequestListener> listener) {
  CHECK(listener != nullptr);
  if (absl::Status valid = Validate(request); !valid.ok()) {
    metrics_.refused_invalid.Increment();
    return valid;
  }
  {
    // Refusals stay cheap: nothing is built for them. The check that counts is below.
    absl::MutexLock lock(&mutex_);
    if (!draining_ && num_queued_ >= options_.max_queued_requests) {
      metrics_.refused_queue_full.Increment();
      return QueueFull();
    }
  }
  const auto room = options_.max_context_tokens - static_cast<int32_t>(request.prompt_ids.size());
  const int32_t max_new = std::min(request.max_new_tokens, room);
  TokenHistory history;
  if (TokenHistory::NeededBy(request.sampling)) history = TokenHistory(request.prompt_ids);
  std::vector<int32_t> prompt_ids = std::move(request.prompt_ids);
  auto generation = std::make_unique<Generation>(
      Generation{.request = std::move(request),
                 .listener = std::move(listener),
                 .sequence = Sequence(0, std::move(prompt_ids), max_new),
                 .history = std::move(history),
                 .submitted = clock_->Now(),
                 .prompt_logprobs = {}});

  absl::MutexLock lock(&mutex_);
  if (!fault_.ok()) {
    metrics_.refused_draining.Increment();
    return StatusF(absl::StatusCode::kUnavailable, "the server is ending: {}",
                   ToStd(fault_.message()));
  }
  if (draining_) {
    metrics_.refused_draining.Increment();
    return StatusF(absl::StatusCode::kUnavailable,
                   "the server is shutting down and takes no new requests");
  }
  if (num_queued_ >= options_.max_queued_requests) {
    metrics_.refused_queue_full.Increment();
    return QueueFull();
  }
  const int64_t handle = next_handle_++;
  generation->sequence.id = handle;
  ++num_queued_;
  live_.insert(handle);
  incoming_.push_back(std::move(generation));
  return handle;
}

void StepEngine::Cancel(int64_t handle) {
  absl::MutexLock lock(&mutex_);
  if (live_.contains(handle)) cancels_.insert(handle);
}

Engine::Snapshot StepEngine::GetSnapshot() const {
  absl::MutexLock lock(&mutex_);
  Snapshot snapshot = snapshot_;
  snapshot.queued = num_queued_;
  snapshot.running = static_cast<int32_t>(live_.size()) - num_queued_;
  return snapshot;
}

void StepEngine::Drain(absl::Time deadline) {
  CHECK(std::this_thread::get_id() != thread_.get_id());
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  const auto empty = [](absl::flat_hash_set<int64_t>* live) { return live->empty(); };
  const absl::Condition all_ended(+empty, &live_);
  if (mutex_.AwaitWithDeadline(all_ended, deadline)) return;
  end_all_ = true;
  mutex_.Await(all_ended);
}

// ---- The loop -----------------------------------------------------------------------------------

void StepEngine::Run() {
  while (WaitForWork()) {
    TakeIntake();
    EndExpired();
    if (!generations_.empty() && (lost_steps_ == 0 || WaitForExperts())) RunStep();
    UpdateSnapshot();
  }
}

// Sleeps while there is nothing to do; false when the engine ends.
bool StepEngine::WaitForWork() {
  if (!generations_.empty()) return true;
  const auto called = [](StepEngine* engine) ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine->mutex_) {
    return engine->stop_ || !engine->incoming_.empty();
  };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(+called, this));
  return !stop_;
}

void StepEngine::TakeIntake() {
  std::vector<std::unique_ptr<Generation>> incoming;
  absl::flat_hash_set<int64_t> cancels;
  bool end_all = false;
  absl::Status fault;
  {
    absl::MutexLock lock(&mutex_);
    incoming.swap(incoming_);
    cancels.swap(cancels_);
    end_all = end_all_;
    fault = fault_;
  }
  for (std::unique_ptr<Generation>& generation : incoming) {
    LogDebug("request_queued", {{"request_id", generation->request.request_id},
                                {"handle", generation->handle()},
                                {"prompt_tokens", generation->sequence.prompt_tokens},
                                {"max_tokens", generation->sequence.max_tokens},
                                {"seed", generation->request.sampling.seed}});
    scheduler_.Add(&generation->sequence);
    generations_.emplace(generation->handle(), std::move(generation));
  }
  for (auto next = generations_.begin(); next != generations_.end();) {
    Generation* const generation = (next++)->second.get();
    if (cancels.contains(generation->handle())) {
      Finish(generation, FinishReason::kCancelled);
    } else if (!fault.ok()) {
      Finish(generation, FinishReason::kCancelled, fault);
    } else if (end_all) {
      Finish(
          generation, FinishReason::kCancelled,
          StatusF(absl::StatusCode::kUnavailable, "the server shut down after {} generated tokens",
                  generation->completion_tokens()));
    }
  }
}

void StepEngine::EndExpired() {
  const absl::Time now = clock_->Now();
  for (auto next = generations_.begin(); next != generations_.end();) {
    Generation* const generation = (next++)->second.get();
    if (generation->request.deadline > now) continue;
    Finish(
        generation, FinishReason::kCancelled,
        StatusF(absl::StatusCode::kDeadlineExceeded, "deadline passed {} after {} generated tokens",
                generation->in_queue ? "in the queue," : "while running,",
                generation->completion_tokens()));
  }
}

void StepEngine::RunStep() {
  const absl::Time begin = clock_->Now();
  const Scheduler::Plan& plan = scheduler_.NextStep();
  NoteStarted(plan.started, begin);
  step_generations_.clear();
  for (const Sequence* sequence : plan.sequences) step_generations_.push_back(Find(sequence));

  const absl::Time scheduled = clock_->Now();
  const absl::Duration experts_before = experts_->CombineTime();
  Step step = plan.step;
  step.trace = join_trace_.Next();
  const absl::Status ran = forward_->Forward(step);
  const absl::Time done = clock_->Now();
  const absl::Duration experts_part = experts_->CombineTime() - experts_before;
  AddSeconds(&metrics_.schedule_seconds, scheduled - begin);
  AddSeconds(&metrics_.experts_seconds, experts_part);
  AddSeconds(&metrics_.forward_seconds, done - scheduled - experts_part);

  if (!ran.ok()) {
    metrics_.failed_steps.Increment();
    scheduler_.Reset();
    if (absl::IsUnavailable(ran)) {
      metrics_.preemptions_for_experts.Increment(static_cast<double>(step_generations_.size()));
      NoteExpertsLost(ran);
      return;
    }
    LogError("step_failed",
             {{"step", plan.step.step_id}, {"rows", plan.step.token_ids.size()}, {"status", ran}});
    if (EndOnFault()) return;
    for (Generation* generation : step_generations_) {
      Finish(generation, FinishReason::kCancelled,
             StatusF(absl::StatusCode::kInternal, "forward pass failed: {}", ToStd(ran.message())));
    }
    return;
  }
  scheduler_.Commit();
  join_trace_.Commit();
  if (lost_steps_ > 0) NoteExpertsBack();
  NoteStep(plan);

  const std::span<Choice> choices = token_stage_.Run(plan.step.segments, step_generations_);
  const absl::Time chosen = clock_->Now();
  const auto failed = [](const Choice& choice) { return !choice.status.ok(); };
  if (std::any_of(choices.begin(), choices.end(), failed) && EndOnFault()) return;
  for (Choice& choice : choices) Publish(&choice);
  const absl::Time end = clock_->Now();
  AddSeconds(&metrics_.logits_seconds, token_stage_.logits_time());
  AddSeconds(&metrics_.sampling_seconds, token_stage_.sampling_time());
  AddSeconds(&metrics_.publish_seconds, end - chosen);
  ObserveSeconds(&metrics_.step_seconds, end - begin);
  const uint64_t read = forward_->weight_bytes_read();
  metrics_.weight_bytes.Increment(static_cast<double>(read - counted_weight_bytes_));
  counted_weight_bytes_ = read;
  const uint64_t experts_read = forward_->expert_bytes_read();
  metrics_.prompt_expert_bytes.Increment(static_cast<double>(experts_read - counted_expert_bytes_));
  counted_expert_bytes_ = experts_read;
}

// After an error: true if the device is lost. Then whoever runs the engine knows it first, and what
// is under way ends.
bool StepEngine::EndOnFault() {
  const absl::Status fault = forward_->Fault();
  if (fault.ok()) return false;
  const absl::Status said =
      StatusF(absl::StatusCode::kInternal, "the device is lost: {}", ToStd(fault.message()));
  LogError("device_lost", {{"requests", generations_.size()}, {"status", fault}});
  if (options_.on_fault) options_.on_fault(said);
  {
    absl::MutexLock lock(&mutex_);
    fault_ = said;
  }
  while (!generations_.empty()) {
    Finish(generations_.begin()->second.get(), FinishReason::kCancelled, said);
  }
  return true;
}

// Requests that leave the queue with this step.
void StepEngine::NoteStarted(std::span<Sequence* const> started, absl::Time now) {
  for (const Sequence* sequence : started) {
    Generation* const generation = Find(sequence);
    if (!generation->in_queue) continue;  // back after a preemption
    generation->in_queue = false;
    generation->first_step = now;
    join_trace_.Add(generation->request);
    ObserveSeconds(&metrics_.queue_seconds, now - generation->submitted);
    metrics_.prompt_tokens.Increment(sequence->prompt_tokens);
    const absl::Duration gap = now - std::max(last_start_, generation->submitted);
    last_start_ = now;
    absl::MutexLock lock(&mutex_);
    --num_queued_;
    seconds_per_start_ += 0.2 * (absl::ToDoubleSeconds(gap) - seconds_per_start_);
  }
}

void StepEngine::NoteStep(const Scheduler::Plan& plan) {
  metrics_.steps.Increment();
  metrics_.batch_rows.Observe(static_cast<double>(plan.step.token_ids.size()));
  metrics_.batch_sequences.Observe(static_cast<double>(plan.sequences.size()));
  metrics_.decode_rows.Increment(plan.decode_rows);
  metrics_.prefill_rows.Increment(plan.prefill_rows);
  metrics_.recompute_rows.Increment(plan.recompute_rows);
  metrics_.preemptions_for_pages.Increment(
      static_cast<double>(scheduler_.num_preemptions() - counted_preemptions_));
  counted_preemptions_ = scheduler_.num_preemptions();
}

void StepEngine::Publish(Choice* choice) {
  Generation* const generation = choice->generation;
  if (!choice->status.ok()) {
    LogError("request_failed",
             {{"request_id", generation->request.request_id}, {"status", choice->status}});
    Finish(generation, FinishReason::kCancelled, std::move(choice->status));
    return;
  }
  const absl::Time now = clock_->Now();
  if (!generation->reported) {
    generation->reported = true;
    generation->first_token = now;
    generation->last_token = now;
    if (!generation->prompt_only()) {
      ObserveSeconds(&metrics_.ttft_seconds, now - generation->submitted);
    }
    generation->listener->OnStarted(std::move(generation->prompt_logprobs));
  } else {
    ObserveSeconds(&metrics_.itl_seconds, now - generation->last_token);
    generation->last_token = now;
  }
  if (generation->prompt_only()) {
    Finish(generation, FinishReason::kLength);
    return;
  }
  const int32_t token = choice->token_id;
  Sequence& sequence = generation->sequence;
  sequence.tokens.push_back(token);
  if (TokenHistory::NeededBy(generation->request.sampling)) generation->history.AddOutput(token);
  metrics_.generated_tokens.Increment();
  const std::vector<int32_t>& stops = generation->request.stop_token_ids;
  const bool is_stop = std::find(stops.begin(), stops.end(), token) != stops.end();
  const bool stop_string = generation->listener->OnToken(
      token, is_stop, choice->logprobs.has_value() ? &*choice->logprobs : nullptr);
  if (is_stop) {
    Finish(generation, FinishReason::kStop, absl::OkStatus(), token);
  } else if (stop_string) {
    Finish(generation, FinishReason::kStop);
  } else if (sequence.num_tokens() == sequence.max_tokens) {
    Finish(generation, FinishReason::kLength);
  }
}

// Frees everything, tells the listener and forgets the request.
void StepEngine::Finish(Generation* generation, FinishReason reason, absl::Status status,
                        int32_t stop_token_id) {
  const absl::Time now = clock_->Now();
  const int64_t handle = generation->handle();
  FinishInfo info;
  info.status = std::move(status);
  info.reason = reason;
  info.stop_token_id = stop_token_id;
  info.prompt_tokens = generation->sequence.prompt_tokens;
  info.completion_tokens = generation->completion_tokens();
  info.timings.queue =
      Since(generation->submitted, generation->in_queue ? now : generation->first_step);
  info.timings.prefill =
      Since(generation->first_step, generation->reported ? generation->first_token : now);
  info.timings.decode = Since(generation->first_token, generation->last_token);
  scheduler_.Remove(&generation->sequence);
  CountOutcome(reason, info.status);
  ObserveSeconds(&metrics_.request_seconds, now - generation->submitted);
  LogDebug("request_done", {{"request_id", generation->request.request_id},
                            {"handle", handle},
                            {"completion_tokens", info.completion_tokens},
                            {"status", info.status}});
  const bool in_queue = generation->in_queue;
  generation->in_queue = false;
  if (in_queue) {
    absl::MutexLock lock(&mutex_);
    --num_queued_;
  }
  UpdateSnapshot();
  generation->listener->OnFinished(info);
  generations_.erase(handle);
  absl::MutexLock lock(&mutex_);
  live_.erase(handle);
  cancels_.erase(handle);
}

void StepEngine::CountOutcome(FinishReason reason, const absl::Status& status) {
  if (absl::IsDeadlineExceeded(status)) {
    metrics_.deadline_exceeded.Increment();
  } else if (absl::IsUnavailable(status)) {
    metrics_.unavailable.Increment();
  } else if (!status.ok()) {
    metrics_.internal.Increment();
  } else if (reason == FinishReason::kStop) {
    metrics_.stopped.Increment();
  } else if (reason == FinishReason::kLength) {
    metrics_.length.Increment();
  } else {
    metrics_.cancelled.Increment();
  }
}

void StepEngine::UpdateSnapshot() {
  const ForwardPass::Limits& limits = forward_->limits();
  const int32_t free_pages = scheduler_.num_free_pages();
  const int32_t used_slots = scheduler_.num_used_slots();
  metrics_.kv_pages_used.Set(limits.num_pages - free_pages);
  metrics_.slots_used.Set(used_slots);
  absl::MutexLock lock(&mutex_);
  snapshot_.free_pages = free_pages;
  snapshot_.num_pages = limits.num_pages;
  snapshot_.used_slots = used_slots;
  snapshot_.num_slots = limits.num_slots;
  snapshot_.max_context_tokens = options_.max_context_tokens;
  metrics_.queued_requests.Set(num_queued_);
  metrics_.running_requests.Set(static_cast<double>(live_.size()) - num_queued_);
}

Generation* StepEngine::Find(const Sequence* sequence) {
  const auto found = generations_.find(sequence->id);
  CHECK(found != generations_.end());
  return found->second.get();
}

}  // namespace banyan::trunk
