// Backends by name, for tests that run on each: "scalar", "avx2", "avx512", "amx" and "cuda", those
// that the build and the machine have.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/parallel/worker_pool.h"
#include "services/trunk/ops/collective/collective.h"
#include "services/trunk/ops/ops.h"

namespace banyan::test {

std::vector<std::string> AvailableBackends();
// Those besides for products alone: "amx_emulated" where the CPU can.
std::vector<std::string> TiledBackends();
// Whether it multiplies tiles, whose sums round otherwise than vectors'.
bool HasTiles(const std::string& name);
bool IsCpu(const std::string& name);
int32_t AvailableGpus();  // 0 in builds without CUDA

// "auto" is the best CPU tier. `pool` outlives the backend; a GPU does without. Aborts with the
// status.
std::unique_ptr<trunk::Backend> MakeBackend(const std::string& name, WorkerPool* pool,
                                            trunk::Collective* collective = nullptr);

// What joins `size` backends of that name: in this process, or NCCL over as many GPUs.
std::unique_ptr<trunk::CollectiveGroup> MakeGroup(const std::string& name, int32_t size);

// The same, computing on the test's own arrays whatever the device (host_array_backend.h).
std::unique_ptr<trunk::Backend> MakeBackendOnHostArrays(const std::string& name, WorkerPool* pool);

}  // namespace banyan::test
