// Keeps what a request's listener hears, and checks the order.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "services/trunk/scheduler/request.h"

namespace banyan::trunk {

// Thread-safe.
class RecordingListener final : public RequestListener {
 public:
  // Called for each token on the engine's thread; true ends the request. Set before Submit.
  std::function<bool(int32_t token_id, size_t num_tokens)> on_token;
  std::function<void()> on_finished;

  void OnStarted(std::vector<TokenLogprobs> prompt_logprobs) override {
    absl::MutexLock lock(&mutex_);
    CHECK(!started_ && !finished_);
    started_ = true;
    prompt_logprobs_ = std::move(prompt_logprobs);
  }

  bool OnToken(int32_t token_id, bool is_stop_token, const TokenLogprobs* logprobs) override {
    size_t count = 0;
    {
      absl::MutexLock lock(&mutex_);
      CHECK(started_ && !finished_ && !stopped_);
      tokens_.push_back(token_id);
      stopped_ = is_stop_token;
      if (logprobs != nullptr) logprobs_.push_back(*logprobs);
      count = tokens_.size();
    }
    return on_token && on_token(token_id, count);
  }

  void OnFinished(const FinishInfo& info) override {
    if (on_finished) on_finished();
    absl::MutexLock lock(&mutex_);
    CHECK(!finished_);
    finished_ = true;
    info_ = info;
  }

  const FinishInfo& Wait() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&finished_));
    return info_;
  }
  void AwaitTokens(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return finished_ || tokens_.size() >= count;
    };
    mutex_.Await(absl::Condition(&reached));
  }

  bool started() const {
    absl::MutexLock lock(&mutex_);
    return started_;
  }
  bool finished() const {
    absl::MutexLock lock(&mutex_);
    return finished_;
  }
  bool ended_by_stop_token() const {
    absl::MutexLock lock(&mutex_);
    return stopped_;
  }
  std::vector<int32_t> tokens() const {
    absl::MutexLock lock(&mutex_);
    return tokens_;
  }
  std::vector<TokenLogprobs> logprobs() const {
    absl::MutexLock lock(&mutex_);
    return logprobs_;
  }
  std::vector<TokenLogprobs> prompt_logprobs() const {
    absl::MutexLock lock(&mutex_);
    return prompt_logprobs_;
  }

 private:
  mutable absl::Mutex mutex_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<int32_t> tokens_ ABSL_GUARDED_BY(mutex_);
  std::vector<TokenLogprobs> logprobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<TokenLogprobs> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  FinishInfo info_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan::trunk
