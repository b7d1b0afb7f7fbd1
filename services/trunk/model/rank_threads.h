// A thread for each device of those that compute a model together.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace banyan::trunk {

class RankThreads {
 public:
  // `spin`: how long threads poll for work, and Run for its end, before they sleep.
  RankThreads(int32_t size, absl::Duration spin);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  int32_t size() const { return static_cast<int32_t>(threads_.size()); }
  absl::Duration spin() const { return spin_; }

  // Calls body(rank) once on each thread, always the same one for a rank, all at the same time;
  // returns when all have returned, with everything they wrote visible. Owned by one calling
  // thread at a time.
  void Run(absl::FunctionRef<void(int32_t rank)> body);

 private:
  void Work(int32_t rank);

  const absl::Duration spin_;
  absl::Mutex mutex_;
  const absl::FunctionRef<void(int32_t)>* body_ = nullptr;  // of the current run
  std::atomic<int64_t> runs_{0};                            // begun; negative: the end
  std::atomic<int32_t> working_{0};
  std::vector<std::thread> threads_;
};

}  // namespace banyan::trunk
