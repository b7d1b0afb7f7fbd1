#include "services/trunk/ops/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {
namespace {

// Done when this returns: streams of ours do not wait for the driver's own.
absl::Status Cleared(void* memory, size_t bytes) {
  RETURN_IF_ERROR(CudaStatus(cudaMemset(memory, 0, bytes), "cudaMemset"));
  return CudaStatus(cudaStreamSynchronize(nullptr), "cudaMemset");
}

// A device of this process is given up.
std::atomic<bool> abandoned{false};

}  // namespace

absl::StatusOr<std::shared_ptr<std::byte>> NewPinned(size_t bytes) {
  bytes = DevicePieceBytes(bytes);
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
  RETURN_IF_ERROR(Cleared(block, bytes));
  return static_cast<std::byte*>(block);
}

absl::Status DeviceMemory::SetAside(const DeviceArena& arena) {
  ASSIGN_OR_RETURN(arena_, NewBlock(arena.bytes()));
  planned_ = arena;
  used_ = 0;
  lent_ = 0;
  return absl::OkStatus();
}

absl::Status DeviceMemory::CheckUsedUp() const {
  if (arena_ == nullptr || used_ == planned_.piece_bytes()) return absl::OkStatus();
  return StatusF(absl::StatusCode::kInternal,
                 "GPU memory: {} bytes of pieces were planned, {} were asked for",
                 planned_.piece_bytes(), used_);
}

absl::StatusOr<std::byte*> DeviceMemory::Allocate(size_t bytes) {
  bytes = DevicePieceBytes(bytes);
  if (arena_ == nullptr) return NewBlock(std::max<size_t>(bytes, kDevicePieceAlignment));
  if (used_ + bytes > planned_.piece_bytes() || used_ + bytes + lent_ > planned_.bytes()) {
    return StatusF(absl::StatusCode::kResourceExhausted,
                   "GPU memory: {} bytes wanted beyond {} in use and {} lent, the plan has {}",
                   bytes, used_, lent_, planned_.piece_bytes());
  }
  std::byte* const memory = arena_ + used_;
  used_ += bytes;
  return memory;
}

absl::StatusOr<std::byte*> DeviceMemory::Lend(size_t bytes) {
  bytes = DevicePieceBytes(bytes);
  if (arena_ == nullptr) return NewBlock(bytes);
  if (used_ + lent_ + bytes > planned_.bytes()) {
    return StatusF(absl::StatusCode::kResourceExhausted,
                   "GPU memory: {} bytes wanted for now beyond {} in use and {} lent, the plan has "
                   "{}",
                   bytes, used_, lent_, planned_.bytes());
  }
  lent_ += bytes;
  return arena_ + planned_.bytes() - lent_;
}

absl::Status DeviceMemory::TakeBack() {
  const uint64_t lent = std::exchange(lent_, 0);
  if (lent == 0) return absl::OkStatus();
  return Cleared(arena_ + planned_.bytes() - lent, lent);
}

absl::StatusOr<std::byte*> DeviceMemory::AllocatePinned(size_t bytes, bool cleared) {
  ASSIGN_OR_RETURN(std::shared_ptr<std::byte> block, NewPinned(bytes));
  if (cleared) std::memset(block.get(), 0, bytes);
  pinned_.push_back(std::move(block));
  return pinned_.back().get();
}

}  // namespace banyan::trunk::cuda
