#include "services/trunk/server/prompt_workers.h"

#include <utility>

namespace banyan::trunk {

PromptWorkers::PromptWorkers(int max_queued) : max_queued_(max_queued) {
  threads_.emplace_back([this] { Run(/*takes_long=*/false); });
  threads_.emplace_back([this] { Run(/*takes_long=*/true); });
}

PromptWorkers::~PromptWorkers() {
  std::deque<std::function<void()>> dropped_short, dropped_long;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    dropped_short.swap(short_);
    dropped_long.swap(long_);
  }
  for (std::thread& thread : threads_) thread.join();
}

bool PromptWorkers::Submit(size_t prompt_bytes, std::function<void()> job) {
  absl::MutexLock lock(&mutex_);
  if (stopping_ || static_cast<int>(short_.size() + long_.size()) >= max_queued_) return false;
  (prompt_bytes > kLongPromptBytes ? long_ : short_).push_back(std::move(job));
  return true;
}

int PromptWorkers::queued() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(short_.size() + long_.size());
}

void PromptWorkers::Run(bool takes_long) {
  while (true) {
    std::function<void()> job;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this, takes_long]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !short_.empty() || (takes_long && !long_.empty());
      };
      mutex_.Await(absl::Condition(&ready));
      if (stopping_) return;
      auto& queue = takes_long && !long_.empty() ? long_ : short_;
      job = std::move(queue.front());
      queue.pop_front();
    }
    job();
  }
}

}  // namespace banyan::trunk
