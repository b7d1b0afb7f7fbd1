// How much of a GPU pieces of memory take, as services/trunk/ops/cuda/device_memory.h cuts them:
// pieces of 1 MiB and more have blocks of their own, which the driver rounds up to 2 MiB; smaller
// ones share blocks of 2 MiB, and what is left of one when the next piece does not fit is lost.
#pragma once

#include <cstdint>

namespace banyan {

inline constexpr uint64_t kDevicePieceAlignment = 256;
inline constexpr uint64_t kDeviceBlockBytes = uint64_t{2} << 20;
inline constexpr uint64_t kDeviceOwnBlockBytes = kDeviceBlockBytes / 2;  // from here on

// An upper bound over all orders of the pieces, which never falls when a piece is added or grows.
// Plain data.
class DeviceBlocks {
 public:
  void Add(uint64_t bytes, int64_t count = 1) {
    if (bytes == 0 || count <= 0) return;
    const auto times = static_cast<uint64_t>(count);
    asked_ += bytes * times;
    if (const uint64_t piece = RoundUp(bytes, kDevicePieceAlignment);
        piece < kDeviceOwnBlockBytes) {
      small_ += piece * times;
    } else {
      large_ += RoundUp(piece, kDeviceBlockBytes) * times;
    }
  }

  uint64_t asked_bytes() const { return asked_; }
  uint64_t block_bytes() const {
    if (small_ == 0) return large_;
    // The pieces of a shared block and the first of the next one do not fit into one: two
    // neighbours hold more than a block's worth.
    return large_ + (2 * small_ / kDeviceBlockBytes + 1) * kDeviceBlockBytes;
  }

 private:
  static uint64_t RoundUp(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

  uint64_t asked_ = 0;
  uint64_t large_ = 0;
  uint64_t small_ = 0;
};

}  // namespace banyan
