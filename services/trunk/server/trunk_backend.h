// The backends that the options ask for: one, or one for each part of a trunk on several devices.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/metrics/registry.h"
#include "common/parallel/worker_pool.h"
#include "services/trunk/model/rank_threads.h"
#include "services/trunk/ops/collective/collective.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/trunk_options.h"

namespace banyan::trunk {

// In the order of making; taken down in the opposite one.
struct TrunkBackends {
  std::vector<std::unique_ptr<WorkerPool>> pools;  // of the parts
  std::unique_ptr<CollectiveGroup> group;          // these two only where there are several
  std::unique_ptr<RankThreads> threads;
  std::vector<std::unique_ptr<Backend>> ranks;

  const Backend& first() const { return *ranks[0]; }
  // What every device has free, if their memory is not the host's.
  std::optional<uint64_t> FreeDeviceBytes() const;
};

// Compute threads of each of the parts that share the host's CPUs.
int ThreadsOfPart(int num_threads, int32_t tensor_parallel);

// `pool` is the only backend's, borrowed, and outlives it; parts have threads of their own, that
// many together. GPUs' own metrics go to `metrics`. Errors: CreateCpuBackend's,
// CreateCudaBackend's, CreateNcclGroup's.
absl::StatusOr<TrunkBackends> CreateBackends(const TrunkOptions& options, WorkerPool* pool,
                                             MetricsRegistry* metrics);

}  // namespace banyan::trunk
