// The backend that the options ask for.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/metrics/registry.h"
#include "common/parallel/worker_pool.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/trunk_options.h"

namespace banyan::trunk {

// `pool` is borrowed and outlives the backend. A GPU's own metrics go to `metrics`. Errors:
// CreateCpuBackend's, CreateCudaBackend's.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const TrunkOptions& options,
                                                       WorkerPool* pool, MetricsRegistry* metrics);

}  // namespace banyan::trunk
