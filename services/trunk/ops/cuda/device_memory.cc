#include "services/trunk/ops/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/device_blocks.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {
namespace {

size_t Rounded(size_t bytes) {
  return (bytes + kDevicePieceAlignment - 1) / kDevicePieceAlignment * kDevicePieceAlignment;
}

// A device of this process is given up.
std::atomic<bool> abandoned{false};

}  // namespace

absl::StatusOr<std::shared_ptr<std::byte>> NewPinned(size_t bytes) {
  bytes = Rounded(bytes);
  void* block = nullptr;
  RETURN_IF_ERROR(
      CudaStatus(cudaHostAlloc(&block, bytes, cudaHostAllocMapped | cudaHostAllocPortable),
                 fmt::format("pinned host memory: {} bytes wanted", bytes)));
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(block), [](std::byte* memory) {
    if (!abandoned) cudaFreeHost(memory);
  });
}

DeviceMemory::~DeviceMemory() {
  if (abandoned) return;
  for (void* block : blocks_) cudaFree(block);
}

void AbandonDevices() { abandoned = true; }

absl::StatusOr<std::byte*> DeviceMemory::NewBlock(size_t bytes) {
  if (budget_bytes_ != 0 && allocated_bytes_ + bytes > budget_bytes_) {
    return StatusF(absl::StatusCode::kResourceExhausted,
                   "GPU memory: {} bytes wanted beyond {} in use, the budget is {}", bytes,
                   allocated_bytes_, budget_bytes_);
  }
  void* block = nullptr;
  if (cudaError_t error = cudaMalloc(&block, bytes); error != cudaSuccess) {
    cudaGetLastError();  // not sticky: the device is well, only full
    size_t free = 0;
    size_t total = 0;
    cudaMemGetInfo(&free, &total);
    return CudaStatus(
        error, fmt::format("GPU memory: {} bytes wanted, {} of {} free, {} in use by us", bytes,
                           free, total, allocated_bytes_));
  }
  blocks_.push_back(block);
  allocated_bytes_ += bytes;
  RETURN_IF_ERROR(CudaStatus(cudaMemset(block, 0, bytes), "cudaMemset"));
  return static_cast<std::byte*>(block);
}

absl::StatusOr<std::byte*> DeviceMemory::Allocate(size_t bytes) {
  bytes = Rounded(bytes);
  if (bytes >= kDeviceOwnBlockBytes) return NewBlock(bytes);
  if (bytes > left_) {
    ASSIGN_OR_RETURN(next_, NewBlock(kDeviceBlockBytes));
    left_ = kDeviceBlockBytes;
  }
  std::byte* const memory = next_;
  next_ += bytes;
  left_ -= bytes;
  return memory;
}

absl::StatusOr<std::byte*> DeviceMemory::AllocatePinned(size_t bytes, bool cleared) {
  ASSIGN_OR_RETURN(std::shared_ptr<std::byte> block, NewPinned(bytes));
  if (cleared) std::memset(block.get(), 0, bytes);
  pinned_.push_back(std::move(block));
  return pinned_.back().get();
}

}  // namespace banyan::trunk::cuda
