#include "services/trunk/model/rank_threads.h"

#include "services/trunk/model/spin_wait.h"

namespace banyan::trunk {

RankThreads::RankThreads(int32_t size, absl::Duration spin) : spin_(spin) {
  for (int32_t rank = 0; rank < size; ++rank) {
    threads_.emplace_back([this, rank] { Work(rank); });
  }
}

RankThreads::~RankThreads() {
  {
    const absl::MutexLock lock(&mutex_);
    runs_.store(-1, std::memory_order_release);
  }
  for (std::thread& thread : threads_) thread.join();
}

void RankThreads::Run(absl::FunctionRef<void(int32_t rank)> body) {
  {
    const absl::MutexLock lock(&mutex_);
    body_ = &body;
    working_.store(size(), std::memory_order_relaxed);
    runs_.fetch_add(1, std::memory_order_release);
  }
  const auto done = [this] { return working_.load(std::memory_order_acquire) == 0; };
  AwaitWithSpin(spin_, &mutex_, done);
}

void RankThreads::Work(int32_t rank) {
  for (int64_t run = 1;; ++run) {
    const auto begun = [&] {
      const int64_t runs = runs_.load(std::memory_order_acquire);
      return runs >= run || runs < 0;
    };
    AwaitWithSpin(spin_, &mutex_, begun);
    if (runs_.load(std::memory_order_acquire) < 0) return;
    (*body_)(rank);
    const absl::MutexLock lock(&mutex_);
    working_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace banyan::trunk
