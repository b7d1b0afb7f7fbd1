// Parallel loops that stay in the calling thread when the work is too small to share.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "common/parallel/worker_pool.h"

namespace banyan::trunk::cpu {

// Handing tiles to spinning workers and waiting for them costs about 2 us, and far more on a
// crowded machine, where a worker may lose its CPU while it holds a tile. One core does 16 to 32
// multiply-adds a cycle. Below this many in the whole loop, some 20 us of work, sharing is not
// worth it: a decoding row of a small model stays in one thread, one of the 80B model does not.
inline constexpr int64_t kMinSharedMultiplyAdds = 768 * 1024;

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
