// The operations on CPUs: exact f32, vectorised, threaded.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/parallel/worker_pool.h"
#include "services/trunk/ops/collective/collective.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

namespace cpu {
struct KernelTable;
}

struct CpuBackendOptions {
  std::string cpu_tier = "auto";              // auto, scalar, avx2, avx512, amx
  Collective* collective = nullptr;           // of devices that share the model; null: alone
  const cpu::KernelTable* kernels = nullptr;  // these, whatever the tier: a test's; outlive it
};

// `pool` and `collective` are borrowed, outlive the backend and are used by its owner's thread
// only. kInvalidArgument: no such tier; kUnimplemented: this CPU lacks it.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options,
                                                          WorkerPool* pool);

}  // namespace banyan::trunk
