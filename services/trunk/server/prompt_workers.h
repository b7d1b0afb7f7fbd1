// Threads that render and tokenise prompts, away from the threads that receive calls and from the
// engine. A prompt of megabytes takes 100 ms and more: it must hold up neither other streams nor
// short prompts.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace banyan::trunk {

// Thread-safe. One thread takes short prompts only, the other long ones first: neither kind waits
// for the other.
class PromptWorkers {
 public:
  static constexpr size_t kLongPromptBytes = size_t{16} << 10;

  // `max_queued`: of both kinds together, not yet begun.
  explicit PromptWorkers(int max_queued);
  // Drops what has not begun; joins.
  ~PromptWorkers();

  // False when the queue is full; `job` is then dropped.
  bool Submit(size_t prompt_bytes, std::function<void()> job);

  int queued() const;

 private:
  void Run(bool takes_long);

  const int max_queued_;
  mutable absl::Mutex mutex_;
  std::deque<std::function<void()>> short_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::function<void()>> long_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace banyan::trunk
