#include "services/trunk/server/answer_buffer.h"

#include <utility>

namespace banyan::trunk {
namespace {

void Fill(const TokenLogprobs& from, inference::v1::TokenLogprobs* to) {
  to->set_token_id(from.token_id);
  to->set_logprob(from.logprob);
  to->mutable_top_ids()->Assign(from.top_ids.begin(), from.top_ids.end());
  to->mutable_top_logprobs()->Assign(from.top_logprobs.begin(), from.top_logprobs.end());
}

inference::v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return inference::v1::STOP;
    case FinishReason::kLength:
      return inference::v1::LENGTH;
    case FinishReason::kCancelled:
      return inference::v1::CANCELLED;
  }
  return inference::v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

AnswerBuffer::AnswerBuffer(Options options, std::function<void()> wake)
    : options_(std::move(options)),
      wake_(std::move(wake)),
      text_(options_.tokenizer, options_.stop) {}

void AnswerBuffer::Wake() {
  {
    absl::MutexLock lock(&mutex_);
    if (!writer_waits_) return;
    writer_waits_ = false;
  }
  wake_();
}

void AnswerBuffer::OnStarted(std::vector<TokenLogprobs> prompt_logprobs) {
  {
    absl::MutexLock lock(&mutex_);
    started_ = true;
    prompt_logprobs_ = std::move(prompt_logprobs);
  }
  Wake();
}

bool AnswerBuffer::OnToken(int32_t token_id, bool is_stop_token, const TokenLogprobs* logprobs) {
  bool stopped = false;
  {
    absl::MutexLock lock(&mutex_);
    if (overflow_ || stopped_) return true;
    const size_t text_before = chunk_.text().size();
    chunk_.add_token_ids(token_id);
    if (!is_stop_token) stopped_ = text_.Add(token_id, *chunk_.mutable_text());
    stopped = stopped_;
    if (stopped_) stop_match_ = text_.stop_match();
    chunk_bytes_ += chunk_.text().size() - text_before + sizeof(int32_t);
    if (logprobs != nullptr) {
      Fill(*logprobs, chunk_.add_logprobs());
      chunk_bytes_ += 16 + logprobs->top_ids.size() * (sizeof(int32_t) + sizeof(float));
    }
    has_chunk_ = true;
    if (chunk_bytes_ > options_.max_pending_bytes) {
      overflow_ = true;
      stopped = true;  // nobody will read what else the engine could say
      chunk_.Clear();
    }
  }
  Wake();
  return stopped;
}

void AnswerBuffer::OnFinished(const FinishInfo& info) {
  {
    absl::MutexLock lock(&mutex_);
    info_ = info;
    finished_ = true;
    if (!stopped_ && !overflow_) {
      text_.Finish(*chunk_.mutable_text());
      if (!chunk_.text().empty()) has_chunk_ = true;
    }
    if (info.stop_token_id >= 0 && options_.tokenizer != nullptr) {
      stop_match_ = std::string(options_.tokenizer->TokenBytes(info.stop_token_id));
    }
  }
  Wake();
}

AnswerBuffer::Taken AnswerBuffer::Take(inference::v1::GenerateResponse& message) {
  absl::MutexLock lock(&mutex_);
  message.Clear();
  if (ended_) return Taken::kNothing;
  if (overflow_) {
    ended_ = true;
    return Taken::kOverflow;
  }
  if (started_) {
    started_ = false;
    inference::v1::Started* const started = message.mutable_started();
    started->set_request_id(options_.request_id);
    started->set_prompt_tokens(options_.prompt_tokens);
    for (const TokenLogprobs& logprobs : prompt_logprobs_) {
      Fill(logprobs, started->add_prompt_logprobs());
    }
    prompt_logprobs_ = {};
    return Taken::kMessage;
  }
  if (has_chunk_) {
    message.mutable_chunk()->Swap(&chunk_);
    chunk_.Clear();
    chunk_bytes_ = 0;
    has_chunk_ = false;
    return Taken::kMessage;
  }
  if (!finished_) {
    writer_waits_ = true;
    return Taken::kNothing;
  }
  ended_ = true;
  if (!info_.status.ok()) return Taken::kEnd;
  inference::v1::Finished* const finished = message.mutable_finished();
  finished->set_reason(ToProto(info_.reason));
  finished->set_prompt_tokens(info_.prompt_tokens);
  finished->set_completion_tokens(info_.completion_tokens);
  finished->mutable_timings()->set_queue_seconds(absl::ToDoubleSeconds(info_.timings.queue));
  finished->mutable_timings()->set_prefill_seconds(absl::ToDoubleSeconds(info_.timings.prefill));
  finished->mutable_timings()->set_decode_seconds(absl::ToDoubleSeconds(info_.timings.decode));
  finished->set_stop_match(stop_match_);
  return Taken::kLast;
}

absl::Status AnswerBuffer::status() const {
  absl::MutexLock lock(&mutex_);
  return info_.status;
}

FinishInfo AnswerBuffer::finish_info() const {
  absl::MutexLock lock(&mutex_);
  return info_;
}

}  // namespace banyan::trunk
