// How much of a GPU one allocation takes in which pieces of memory lie one behind the other, as
// services/trunk/ops/cuda/device_memory.h lays them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace banyan {

inline constexpr uint64_t kDevicePieceAlignment = 256;
// What the driver hands out: an allocation takes whole pages of it.
inline constexpr uint64_t kDevicePageBytes = uint64_t{2} << 20;

constexpr uint64_t DevicePieceBytes(uint64_t bytes) {
  return (bytes + kDevicePieceAlignment - 1) / kDevicePieceAlignment * kDevicePieceAlignment;
}

// The same in whatever order the pieces come; never falls when one is added or grows. Plain data.
class DeviceArena {
 public:
  void Add(uint64_t bytes, int64_t count = 1) {
    if (count <= 0) return;
    const auto times = static_cast<uint64_t>(count);
    asked_ += bytes * times;
    pieces_ += DevicePieceBytes(bytes) * times;
  }
  // In use beside the pieces added so far, and gone before the next ones come.
  void AddForNow(uint64_t bytes) { peak_ = std::max(peak_, pieces_ + DevicePieceBytes(bytes)); }

  uint64_t asked_bytes() const { return asked_; }  // for pieces
  uint64_t piece_bytes() const { return pieces_; }
  // What is taken for now beyond the room of all pieces.
  uint64_t for_now_bytes() const { return std::max(peak_, pieces_) - pieces_; }
  uint64_t bytes() const {
    const uint64_t most = std::max(peak_, pieces_);
    return (most + kDevicePageBytes - 1) / kDevicePageBytes * kDevicePageBytes;
  }

 private:
  uint64_t asked_ = 0;
  uint64_t pieces_ = 0;
  uint64_t peak_ = 0;
};

}  // namespace banyan
