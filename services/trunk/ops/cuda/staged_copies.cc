#include "services/trunk/ops/cuda/staged_copies.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/parallel/topology.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {
namespace {

// Threads that copy to and from the buffers, and the least that is worth sharing out: one thread
// copies at 6 to 11 GB/s, the link takes 55.
constexpr int kMostCopiers = 8;
constexpr size_t kCopierBytes = size_t{512} << 10;

}  // namespace

// The copiers sleep between copies: the CPUs may be the experts'.
StagedCopies::StagedCopies(DeviceMemory* memory, cudaStream_t stream)
    : memory_(memory),
      stream_(stream),
      copiers_({.num_threads = std::clamp(UsableCpuCount(), 1, kMostCopiers),
                .spin = absl::ZeroDuration()}) {}

absl::StatusOr<std::unique_ptr<StagedCopies>> StagedCopies::Create(DeviceMemory* memory,
                                                                   cudaStream_t stream) {
  std::unique_ptr<StagedCopies> copies(new StagedCopies(memory, stream));
  RETURN_IF_ERROR(copies->Open());
  return copies;
}

absl::Status StagedCopies::Open() {
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(buffers_[i], memory_->AllocatePinned(kBufferBytes));
    RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&staged_[i], cudaEventDisableTiming),
                               "cudaEventCreate"));
  }
  return absl::OkStatus();
}

StagedCopies::~StagedCopies() {
  for (cudaEvent_t event : staged_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

void StagedCopies::CopyOnHost(const std::byte* from, size_t bytes, std::byte* to) {
  if (bytes < 2 * kCopierBytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  const size_t parts = (bytes + kCopierBytes - 1) / kCopierBytes;
  copiers_.ParallelFor(static_cast<int64_t>(parts), [&](int64_t part, int) {
    const size_t at = static_cast<size_t>(part) * kCopierBytes;
    const size_t some = std::min(kCopierBytes, bytes - at);
    std::memcpy(to + at, from + at, some);
  });
}

cudaError_t StagedCopies::QueueUpload(const void* host, size_t bytes, void* device) {
  const auto* from = static_cast<const std::byte*>(host);
  auto* to = static_cast<std::byte*>(device);
  cudaError_t first = cudaSuccess;
  const auto note = [&first](cudaError_t error) {
    if (first == cudaSuccess) first = error;
  };
  for (size_t at = 0; at < bytes && first == cudaSuccess; at += kBufferBytes) {
    const size_t some = std::min(kBufferBytes, bytes - at);
    const int turn = turn_;
    turn_ = 1 - turn_;
    note(cudaEventSynchronize(staged_[turn]));
    CopyOnHost(from + at, some, buffers_[turn]);
    note(cudaMemcpyAsync(to + at, buffers_[turn], some, cudaMemcpyHostToDevice, stream_));
    note(cudaEventRecord(staged_[turn], stream_));
  }
  return first;
}

cudaError_t StagedCopies::QueueReadBack(const void* device, size_t bytes) {
  return cudaMemcpyAsync(buffers_[0], device, bytes, cudaMemcpyDeviceToHost, stream_);
}

absl::StatusOr<std::byte*> StagedCopies::DeviceBuffer() {
  std::byte*& buffer = device_buffers_[turn_];
  if (buffer == nullptr) {
    ASSIGN_OR_RETURN(buffer, memory_->Lend(kBufferBytes));
  }
  return buffer;
}

bool StagedCopies::on_loan() const {
  const bool lent = device_buffers_[0] != nullptr || device_buffers_[1] != nullptr;
  return lent && memory_->has_arena();
}

absl::Status StagedCopies::EndLoan() {
  std::fill_n(device_buffers_, 2, nullptr);
  return memory_->TakeBack();
}

}  // namespace banyan::trunk::cuda
