#include "services/trunk/server/trunk_backend.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/trunk/ops/collective/in_process.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#ifdef BANYAN_CUDA
#include "services/trunk/ops/collective/nccl.h"
#include "services/trunk/ops/cuda/cuda_backend.h"
#include "services/trunk/server/gpu_metrics.h"
#endif

namespace banyan::trunk {
namespace {

// Threads that wait for each other beside GPUs poll, as long as a step takes; those of parts that
// share CPUs sleep.
constexpr absl::Duration kSpinBesideGpus = absl::Milliseconds(5);

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const TrunkOptions& options,
                                                       WorkerPool* pool, Collective* collective,
                                                       [[maybe_unused]] MetricsRegistry* metrics) {
#ifdef BANYAN_CUDA
  if (options.use_cuda) {
    const int device = collective == nullptr ? 0 : collective->rank();
    OpeningGpu gpu(device);
    absl::StatusOr<std::unique_ptr<Backend>> backend =
        CreateCudaBackend({.device = device,
                           .vram_budget_bytes = options.vram_budget_bytes,
                           .collective = collective});
    if (!backend.ok()) return Annotate(backend.status(), "--backend cuda");
    gpu.Opened(metrics);
    return backend;
  }
#endif
  return CreateCpuBackend({.cpu_tier = options.cpu_tier, .collective = collective}, pool);
}

absl::StatusOr<std::unique_ptr<CollectiveGroup>> CreateGroup(const TrunkOptions& options) {
#ifdef BANYAN_CUDA
  if (options.use_cuda) return CreateNcclGroup(options.tensor_parallel);
#endif
  return std::make_unique<InProcessGroup>(options.tensor_parallel);
}

}  // namespace

std::optional<uint64_t> TrunkBackends::FreeDeviceBytes() const {
  std::optional<uint64_t> least;
  for (const auto& backend : ranks) {
    const std::optional<uint64_t> free = backend->FreeDeviceBytes();
    if (free) least = std::min(least.value_or(*free), *free);
  }
  return least;
}

int ThreadsOfPart(int num_threads, int32_t tensor_parallel) {
  return std::max(1, num_threads / tensor_parallel);
}

absl::StatusOr<TrunkBackends> CreateBackends(const TrunkOptions& options, WorkerPool* pool,
                                             MetricsRegistry* metrics) {
  TrunkBackends out;
  out.ranks.resize(static_cast<size_t>(options.tensor_parallel));
  if (options.tensor_parallel == 1) {
    ASSIGN_OR_RETURN(out.ranks[0], CreateBackend(options, pool, nullptr, metrics));
    return out;
  }
  ASSIGN_OR_RETURN(out.group, CreateGroup(options));
  for (int32_t rank = 0; rank < options.tensor_parallel; ++rank) {
    const int threads =
        options.use_cuda ? 1 : ThreadsOfPart(pool->num_threads(), options.tensor_parallel);
    out.pools.push_back(std::make_unique<WorkerPool>(WorkerPool::Options{.num_threads = threads}));
  }
  out.threads = std::make_unique<RankThreads>(
      options.tensor_parallel, options.use_cuda ? kSpinBesideGpus : absl::ZeroDuration());
  std::vector<absl::Status> statuses(out.ranks.size());
  out.threads->Run([&](int32_t rank) {
    const auto i = static_cast<size_t>(rank);
    absl::StatusOr<std::unique_ptr<Backend>> backend =
        CreateBackend(options, out.pools[i].get(), out.group->rank(rank), metrics);
    statuses[i] = backend.status();
    if (backend.ok()) out.ranks[i] = *std::move(backend);
  });
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return out;
}

}  // namespace banyan::trunk
