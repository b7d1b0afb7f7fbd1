#include "tests/fakes/backends.h"

#include <cstdio>
#include <utility>

#include "common/base/check.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "services/trunk/ops/cpu/cpu_tier.h"
#include "tests/fakes/host_array_backend.h"
#ifdef BANYAN_CUDA
#include "services/trunk/ops/cuda/cuda_backend.h"
#endif

namespace banyan::test {
namespace {

std::unique_ptr<trunk::Backend> ValueOf(absl::StatusOr<std::unique_ptr<trunk::Backend>> backend) {
  if (!backend.ok()) std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
  CHECK(backend.ok());
  return *std::move(backend);
}

}  // namespace

std::vector<std::string> AvailableBackends() {
  std::vector<std::string> names = trunk::cpu::AvailableTiers();
#ifdef BANYAN_CUDA
  if (trunk::CudaDevicePresent()) names.push_back("cuda");
#endif
  return names;
}

bool IsCpu(const std::string& name) { return name != "cuda"; }

std::unique_ptr<trunk::Backend> MakeBackend(const std::string& name, WorkerPool* pool) {
#ifdef BANYAN_CUDA
  if (!IsCpu(name)) return ValueOf(trunk::CreateCudaBackend({}));
#endif
  return ValueOf(trunk::CreateCpuBackend({.cpu_tier = name}, pool));
}

std::unique_ptr<trunk::Backend> MakeBackendOnHostArrays(const std::string& name, WorkerPool* pool) {
  std::unique_ptr<trunk::Backend> backend = MakeBackend(name, pool);
  return IsCpu(name) ? std::move(backend) : MakeHostArrayBackend(std::move(backend));
}

}  // namespace banyan::test
