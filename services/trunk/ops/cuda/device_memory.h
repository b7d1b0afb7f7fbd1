// Owners of device memory and pinned host memory, freed together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/plan/device_arena.h"

namespace banyan::trunk::cuda {

// Host memory that every device maps at the same address, contents undefined; freed when nobody
// holds it, which waits for what the devices are doing. kResourceExhausted.
absl::StatusOr<std::shared_ptr<std::byte>> NewPinned(size_t bytes);

// Something on a device will never end. No memory of any device, nor pinned, is freed from now on,
// since that would wait for it: the process ends.
void AbandonDevices();

// One arena, set aside before the first piece; or, where nobody knows what will be needed, an
// allocation for each piece, of which the driver takes more than is asked. Thread-compatible.
class DeviceMemory {
 public:
  // `budget_bytes` 0: whatever the device has.
  explicit DeviceMemory(uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Pieces lie in a new arena from here on. kResourceExhausted with the numbers: the budget, or
  // what the device has.
  absl::Status SetAside(const DeviceArena& arena);
  bool has_arena() const { return arena_ != nullptr; }
  // kInternal unless every piece of the arena was asked for; without one nothing is said.
  absl::Status CheckUsedUp() const;

  // Zeroed, 256-byte aligned, sizes rounded up to that. kResourceExhausted with the numbers.
  absl::StatusOr<std::byte*> Allocate(size_t bytes);
  // From the arena's end, contents undefined, until TakeBack: nothing may be using them any more
  // then. Without an arena they are a piece like any other.
  absl::StatusOr<std::byte*> Lend(size_t bytes);
  absl::Status TakeBack();
  // Host memory that the device maps at the same address; zeroed unless that is not asked for.
  absl::StatusOr<std::byte*> AllocatePinned(size_t bytes, bool cleared = true);

  uint64_t allocated_bytes() const { return allocated_bytes_; }

 private:
  absl::StatusOr<std::byte*> NewBlock(size_t bytes);

  const uint64_t budget_bytes_;
  uint64_t allocated_bytes_ = 0;  // of the device
  std::vector<void*> blocks_;
  std::vector<std::shared_ptr<std::byte>> pinned_;
  DeviceArena planned_;
  std::byte* arena_ = nullptr;
  uint64_t used_ = 0;  // of its beginning, for pieces
  uint64_t lent_ = 0;  // of its end
};

}  // namespace banyan::trunk::cuda
