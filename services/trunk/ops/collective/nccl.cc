#include "services/trunk/ops/collective/nccl.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/trunk/ops/cuda/cuda_status.h"
#include "services/trunk/ops/cuda/elementwise.h"

namespace banyan::trunk {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";
// Sizes of a few rows, and of a step's, so that what NCCL loads and allocates when it first sees
// one is there before the first step: small, middle and large messages take different kernels.
constexpr int64_t kWarmUpCounts[] = {2048, 65536, 1 << 20};

// The functions that we call, as nccl.h declares them.
struct NcclApi {
  decltype(&ncclCommInitAll) comm_init_all = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
};

// The library stays open: its threads and kernels outlive a group.
absl::StatusOr<NcclApi> OpenNccl() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return FailedPreconditionF("NCCL, which joins several GPUs: {}", dlerror());
  NcclApi api;
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    *function =
        reinterpret_cast<std::remove_reference_t<decltype(*function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  find("ncclCommInitAll", &api.comm_init_all);
  find("ncclCommDestroy", &api.comm_destroy);
  find("ncclCommGetAsyncError", &api.comm_get_async_error);
  find("ncclAllReduce", &api.all_reduce);
  find("ncclAllGather", &api.all_gather);
  find("ncclGroupStart", &api.group_start);
  find("ncclGroupEnd", &api.group_end);
  find("ncclGetErrorString", &api.get_error_string);
  find("ncclGetLastError", &api.get_last_error);
  if (!missing.empty()) return FailedPreconditionF("{}: no function {}", kLibrary, missing);
  return api;
}

class NcclGroup final : public CollectiveGroup {
 public:
  NcclGroup(const NcclApi& api, const NcclOptions& options, int32_t size)
      : api_(api), gathers_(size > 2 || options.always_gather) {
    for (int32_t rank = 0; rank < size; ++rank) {
      members_.push_back(std::make_unique<Member>(this, rank));
    }
  }

  // Of a group that is over nothing is freed: sums that are queued refer to it.
  ~NcclGroup() override {
    if (failed_.load(std::memory_order_acquire)) return;
    for (const auto& member : members_) {
      const absl::MutexLock lock(&member->mutex);
      if (member->comm != nullptr) api_.comm_destroy(member->comm);
    }
  }

  absl::Status Open() {
    std::vector<int> devices(members_.size());
    std::iota(devices.begin(), devices.end(), 0);
    std::vector<ncclComm_t> comms(members_.size());
    RETURN_IF_ERROR(
        StatusOf(api_.comm_init_all(comms.data(), static_cast<int>(devices.size()), devices.data()),
                 nullptr, "ncclCommInitAll"));
    for (size_t i = 0; i < members_.size(); ++i) {
      const absl::MutexLock lock(&members_[i]->mutex);
      members_[i]->comm = comms[i];
    }
    int current = 0;
    RETURN_IF_ERROR(cuda::CudaStatus(cudaGetDevice(&current), "cudaGetDevice"));
    const absl::Status warm = WarmUp();
    RETURN_IF_ERROR(cuda::CudaStatus(cudaSetDevice(current), "cudaSetDevice"));
    return warm;
  }

  int32_t size() const override { return static_cast<int32_t>(members_.size()); }
  Collective* rank(int32_t rank) const override {
    return members_[static_cast<size_t>(rank)].get();
  }

 private:
  struct Member final : public Collective {
    Member(NcclGroup* g, int32_t r) : group(g), own_rank(r) {}

    int32_t rank() const override { return own_rank; }
    int32_t size() const override { return group->size(); }
    absl::Status AllReduce(float* x, int64_t count, float* scratch, void* stream) override {
      return group->AllReduce(this, x, count, scratch, static_cast<cudaStream_t>(stream));
    }
    void Abort(const absl::Status& why) override { group->Abort(why); }
    absl::Status status() const override { return group->StatusOfMember(*this); }

    NcclGroup* const group;
    const int32_t own_rank;
    // Held while something is queued, which does not wait for other ranks once all have met.
    mutable absl::Mutex mutex;
    ncclComm_t comm ABSL_GUARDED_BY(mutex) = nullptr;
  };

  absl::Status StatusOf(ncclResult_t result, ncclComm_t comm, const char* what) const {
    if (result == ncclSuccess) return absl::OkStatus();
    return StatusF(absl::StatusCode::kInternal, "{}: {}: {}", what, api_.get_error_string(result),
                   api_.get_last_error(comm));
  }

  absl::Status AllReduce(Member* member, float* x, int64_t count, float* scratch,
                         cudaStream_t stream) {
    if (failed_.load(std::memory_order_acquire)) return Failure();
    const auto n = static_cast<size_t>(count);
    const absl::MutexLock lock(&member->mutex);
    ncclComm_t const comm = member->comm;
    if (comm == nullptr) return Failure();
    if (!gathers_) {
      return StatusOf(api_.all_reduce(x, x, n, ncclFloat, ncclSum, comm, stream), comm,
                      "ncclAllReduce");
    }
    CHECK(scratch != nullptr);
    RETURN_IF_ERROR(
        StatusOf(api_.all_gather(x, scratch, n, ncclFloat, comm, stream), comm, "ncclAllGather"));
    return cuda::CudaStatus(cuda::SumParts(scratch, size(), count, x, stream), "sum of all ranks");
  }

  // What is queued stays: ncclCommAbort would free what the sums of a recorded step still use, and
  // may wait for a device that waits for its host. Devices that are well come to an end by
  // themselves; whoever waits for the others has a limit.
  void Abort(const absl::Status& why) {
    CHECK(!why.ok());
    const absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;
    failure_ = why;
    failed_.store(true, std::memory_order_release);
  }

  absl::Status Failure() const {
    const absl::MutexLock lock(&mutex_);
    return failure_;
  }

  absl::Status StatusOfMember(const Member& member) const {
    if (failed_.load(std::memory_order_acquire)) return Failure();
    ncclResult_t error = ncclSuccess;
    const absl::MutexLock lock(&member.mutex);
    if (member.comm == nullptr) return Failure();
    RETURN_IF_ERROR(StatusOf(api_.comm_get_async_error(member.comm, &error), member.comm,
                             "ncclCommGetAsyncError"));
    return StatusOf(error, member.comm, "NCCL");
  }

  // Of each rank: its device, while it is warmed up.
  struct WarmRank {
    cudaStream_t stream = nullptr;
    float* x = nullptr;
    float* scratch = nullptr;
  };

  absl::Status WarmUp() {
    std::vector<WarmRank> ranks(members_.size());
    absl::Status status = RunWarmUp(&ranks);
    for (size_t i = 0; i < ranks.size(); ++i) {
      cudaSetDevice(static_cast<int>(i));
      if (ranks[i].stream != nullptr) {
        cudaStreamSynchronize(ranks[i].stream);
        cudaStreamDestroy(ranks[i].stream);
      }
      cudaFree(ranks[i].x);
      cudaFree(ranks[i].scratch);
    }
    return status;
  }

  absl::Status RunWarmUp(std::vector<WarmRank>* ranks) {
    const int64_t most = kWarmUpCounts[std::size(kWarmUpCounts) - 1];
    const auto bytes = static_cast<size_t>(most) * sizeof(float);
    for (size_t i = 0; i < ranks->size(); ++i) {
      WarmRank& rank = (*ranks)[i];
      const std::string what = fmt::format("GPU {}, NCCL's warm-up", i);
      RETURN_IF_ERROR(cuda::CudaStatus(cudaSetDevice(static_cast<int>(i)), what));
      RETURN_IF_ERROR(
          cuda::CudaStatus(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking), what));
      RETURN_IF_ERROR(cuda::CudaStatus(cudaMalloc(reinterpret_cast<void**>(&rank.x), bytes), what));
      RETURN_IF_ERROR(cuda::CudaStatus(cudaMemsetAsync(rank.x, 0, bytes, rank.stream), what));
      if (!gathers_) continue;
      RETURN_IF_ERROR(cuda::CudaStatus(
          cudaMalloc(reinterpret_cast<void**>(&rank.scratch), bytes * ranks->size()), what));
    }
    for (const int64_t count : kWarmUpCounts) {
      // Queued as one, since one thread does it for all.
      RETURN_IF_ERROR(StatusOf(api_.group_start(), nullptr, "ncclGroupStart"));
      absl::Status queued;
      for (size_t i = 0; i < ranks->size() && queued.ok(); ++i) {
        const WarmRank& rank = (*ranks)[i];
        const absl::MutexLock lock(&members_[i]->mutex);
        ncclComm_t const comm = members_[i]->comm;
        const auto n = static_cast<size_t>(count);
        queued = StatusOf(
            gathers_ ? api_.all_gather(rank.x, rank.scratch, n, ncclFloat, comm, rank.stream)
                     : api_.all_reduce(rank.x, rank.x, n, ncclFloat, ncclSum, comm, rank.stream),
            comm, "NCCL's warm-up");
      }
      RETURN_IF_ERROR(StatusOf(api_.group_end(), nullptr, "ncclGroupEnd"));
      RETURN_IF_ERROR(queued);
    }
    for (size_t i = 0; i < ranks->size(); ++i) {
      RETURN_IF_ERROR(cuda::CudaStatus(cudaStreamSynchronize((*ranks)[i].stream),
                                       fmt::format("GPU {}, NCCL's warm-up", i)));
    }
    return absl::OkStatus();
  }

  const NcclApi api_;
  const bool gathers_;
  std::vector<std::unique_ptr<Member>> members_;
  std::atomic<bool> failed_{false};
  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<CollectiveGroup>> CreateNcclGroup(int32_t size,
                                                                 const NcclOptions& options) {
  CHECK(size >= 1);
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  if (count < size) {
    return InvalidArgumentF(
        "--tensor_parallel {}: this machine has {} GPU(s), one for each part "
        "is needed",
        size, count);
  }
  ASSIGN_OR_RETURN(const NcclApi api, OpenNccl());
  auto group = std::make_unique<NcclGroup>(api, options, size);
  RETURN_IF_ERROR(group->Open());
  return group;
}

}  // namespace banyan::trunk
