#include "services/trunk/server/trunk_backend.h"

#include "common/base/strings.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#ifdef BANYAN_CUDA
#include "services/trunk/ops/cuda/cuda_backend.h"
#include "services/trunk/server/gpu_metrics.h"
#endif

namespace banyan::trunk {

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const TrunkOptions& options,
                                                       WorkerPool* pool,
                                                       [[maybe_unused]] MetricsRegistry* metrics) {
#ifdef BANYAN_CUDA
  if (options.use_cuda) {
    absl::StatusOr<std::unique_ptr<Backend>> backend =
        CreateCudaBackend({.vram_budget_bytes = options.vram_budget_bytes});
    if (!backend.ok()) return Annotate(backend.status(), "--backend cuda");
    RegisterGpuMetrics(CudaBackendOptions().device, metrics);
    return backend;
  }
#endif
  return CreateCpuBackend({.cpu_tier = options.cpu_tier}, pool);
}

}  // namespace banyan::trunk
