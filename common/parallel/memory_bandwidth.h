// How fast this process reads its weights: the bound of every step that computes little per byte.
#pragma once

#include <cstddef>
#include <span>

#include "absl/time/time.h"
#include "common/parallel/worker_pool.h"

namespace banyan {

// Reads `memory` in passes of 8 MiB a thread, from the start again at its end, on all threads of
// the pool for about `duration`, and returns the bytes per second of the fastest pass: one that did
// not lose its CPU to somebody else. 0 when there is nothing to read. Memory should be resident: a
// page that is not counts with the time of its fault. What fits in the caches is read from there,
// as a step that uses it will. Owned by the pool's calling thread.
double MeasureReadBandwidth(WorkerPool& pool, std::span<const std::span<const std::byte>> memory,
                            absl::Duration duration);

}  // namespace banyan
