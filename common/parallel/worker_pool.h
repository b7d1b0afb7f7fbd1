// Persistent threads that run one parallel loop at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"

namespace banyan {

class WorkerPool {
 public:
  struct Options {
    int num_threads = 1;  // the calling thread is one of them; 1: everything runs in the caller
    // How long an idle worker polls for the next loop before it sleeps in the kernel.
    absl::Duration spin = absl::Microseconds(200);
    // Worker i (1, 2, ...) to the i-th CPU of the process's affinity mask, modulo its size; the
    // calling thread, thread 0, stays as it is.
    bool pin = false;
  };

  explicit WorkerPool(const Options& options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int num_threads() const;

  // Calls body(tile, thread) once for each tile in [0, num_tiles), thread in [0, num_threads());
  // returns when all are done, with everything they wrote visible. Tiles are taken dynamically, so
  // a thread that loses its CPU delays one tile only, and a worker that wakes late is not waited
  // for. Which thread runs a tile must not matter for the result. One loop at a time: owned by one
  // calling thread, and `body` starts no loop. No allocation, no lock when workers are awake.
  // num_tiles < 2^32.
  void ParallelFor(int64_t num_tiles, absl::FunctionRef<void(int64_t tile, int thread)> body);

  // No loop comes for a while: workers sleep instead of polling, until the next one. Of the owner.
  void Rest();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan
