// Owners of device memory and pinned host memory, freed together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan::trunk::cuda {

// Host memory that every device maps at the same address, contents undefined; freed when nobody
// holds it, which waits for what the devices are doing. kResourceExhausted.
absl::StatusOr<std::shared_ptr<std::byte>> NewPinned(size_t bytes);

// Something on a device will never end. No memory of any device, nor pinned, is freed from now on,
// since that would wait for it: the process ends.
void AbandonDevices();

// Small pieces are cut from blocks, since the driver hands out whole megabytes. Thread-compatible.
class DeviceMemory {
 public:
  // `budget_bytes` 0: whatever the device has.
  explicit DeviceMemory(uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Zeroed, 256-byte aligned, sizes rounded up to that. kResourceExhausted with the numbers.
  absl::StatusOr<std::byte*> Allocate(size_t bytes);
  // Host memory that the device maps at the same address; zeroed unless that is not asked for.
  absl::StatusOr<std::byte*> AllocatePinned(size_t bytes, bool cleared = true);

  uint64_t allocated_bytes() const { return allocated_bytes_; }

 private:
  absl::StatusOr<std::byte*> NewBlock(size_t bytes);

  const uint64_t budget_bytes_;
  uint64_t allocated_bytes_ = 0;  // of the device
  std::vector<void*> blocks_;
  std::vector<std::shared_ptr<std::byte>> pinned_;
  std::byte* next_ = nullptr;  // in the last small block
  size_t left_ = 0;
};

}  // namespace banyan::trunk::cuda
