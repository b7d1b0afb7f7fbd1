#include "tests/fakes/backends.h"

#include <cstdio>
#include <utility>

#include "common/base/check.h"
#include "services/trunk/ops/collective/in_process.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "services/trunk/ops/cpu/cpu_tier.h"
#include "tests/fakes/emulated_linear.h"
#include "tests/fakes/host_array_backend.h"
#ifdef BANYAN_CUDA
#include "services/trunk/ops/collective/nccl.h"
#include "services/trunk/ops/cuda/cuda_backend.h"
#endif

namespace banyan::test {
namespace {

template <typename T>
std::unique_ptr<T> ValueOf(absl::StatusOr<std::unique_ptr<T>> made) {
  if (!made.ok()) std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
  CHECK(made.ok());
  return *std::move(made);
}

}  // namespace

std::vector<std::string> AvailableBackends() {
  std::vector<std::string> names = trunk::cpu::AvailableTiers();
#ifdef BANYAN_CUDA
  if (trunk::CudaDevicePresent()) names.push_back("cuda");
#endif
  return names;
}

std::vector<std::string> TiledBackends() {
  if (EmulatedAmxKernels() != nullptr) return {"amx_emulated"};
  return {};
}

bool HasTiles(const std::string& name) { return !IsCpu(name) || name.rfind("amx", 0) == 0; }

int32_t AvailableGpus() {
#ifdef BANYAN_CUDA
  return trunk::CudaDeviceCount();
#else
  return 0;
#endif
}

bool IsCpu(const std::string& name) { return name != "cuda"; }

std::unique_ptr<trunk::Backend> MakeBackend(const std::string& name, WorkerPool* pool,
                                            trunk::Collective* collective) {
#ifdef BANYAN_CUDA
  if (!IsCpu(name)) {
    const int device = collective == nullptr ? 0 : collective->rank();
    return ValueOf(trunk::CreateCudaBackend({.device = device, .collective = collective}));
  }
#endif
  trunk::CpuBackendOptions options = {.cpu_tier = name, .collective = collective};
  if (name == "amx_emulated") options.kernels = EmulatedAmxKernels();
  return ValueOf(trunk::CreateCpuBackend(options, pool));
}

std::unique_ptr<trunk::CollectiveGroup> MakeGroup(const std::string& name, int32_t size) {
#ifdef BANYAN_CUDA
  if (!IsCpu(name)) return ValueOf(trunk::CreateNcclGroup(size));
#endif
  CHECK(IsCpu(name));
  return std::make_unique<trunk::InProcessGroup>(size);
}

std::unique_ptr<trunk::Backend> MakeBackendOnHostArrays(const std::string& name, WorkerPool* pool) {
  std::unique_ptr<trunk::Backend> backend = MakeBackend(name, pool);
  return IsCpu(name) ? std::move(backend) : MakeHostArrayBackend(std::move(backend));
}

}  // namespace banyan::test
