// Parallel loops that stay in the calling thread when the work is too small to share.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "common/parallel/worker_pool.h"

namespace banyan::trunk::cpu {

// Waking spinning workers and waiting for them costs about 2 us; one core does 16 to 32
// multiply-adds a cycle. Below this many, in the whole loop, sharing loses.
inline constexpr int64_t kMinSharedMultiplyAdds = 192 * 1024;

class Parallel {
 public:
  explicit Parallel(WorkerPool* pool) : pool_(pool) {}

  int num_threads() const { return pool_->num_threads(); }

  // `cost`: multiply-adds of the whole loop, roughly.
  void For(int64_t num_tiles, int64_t cost, absl::FunctionRef<void(int64_t, int)> body) const {
    if (cost < kMinSharedMultiplyAdds) {
      for (int64_t tile = 0; tile < num_tiles; ++tile) body(tile, 0);
    } else {
      pool_->ParallelFor(num_tiles, body);
    }
  }

 private:
  WorkerPool* pool_;  // borrowed
};

}  // namespace banyan::trunk::cpu
