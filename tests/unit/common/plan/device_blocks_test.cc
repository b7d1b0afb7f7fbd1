#include "common/plan/device_blocks.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace banyan {
namespace {

// What device_memory.cc does with pieces in this order, and the driver with its blocks.
uint64_t Cut(const std::vector<uint64_t>& pieces) {
  uint64_t total = 0;
  uint64_t left = 0;
  for (const uint64_t bytes : pieces) {
    const uint64_t piece = (bytes + 255) / 256 * 256;
    if (piece >= kDeviceOwnBlockBytes) {
      total += (piece + kDeviceBlockBytes - 1) / kDeviceBlockBytes * kDeviceBlockBytes;
    } else {
      if (piece > left) {
        total += kDeviceBlockBytes;
        left = kDeviceBlockBytes;
      }
      left -= piece;
    }
  }
  return total;
}

TEST(DeviceBlocksTest, NeverLessThanWhatIsTaken) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<uint64_t> pieces(1 + random() % 200);
    DeviceBlocks blocks;
    const uint64_t most = uint64_t{1} << (4 + random() % 20);
    for (uint64_t& piece : pieces) {
      piece = 1 + random() % most;
      const uint64_t before = blocks.block_bytes();
      blocks.Add(piece);
      EXPECT_GE(blocks.block_bytes(), before);
    }
    EXPECT_GE(blocks.block_bytes(), Cut(pieces)) << "round " << round;
    EXPECT_GE(blocks.block_bytes(), blocks.asked_bytes());
  }
}

TEST(DeviceBlocksTest, LargePiecesExactly) {
  DeviceBlocks blocks;
  blocks.Add(uint64_t{48} << 20, 36);
  blocks.Add((uint64_t{3} << 20) + 1);
  blocks.Add(0);
  EXPECT_EQ(blocks.block_bytes(), (uint64_t{48 * 36} + 4) << 20);
}

TEST(DeviceBlocksTest, TheWorstOrderOfSmallPieces) {
  DeviceBlocks blocks;
  std::vector<uint64_t> pieces;
  for (int i = 0; i < 64; ++i) {
    pieces.push_back((1 << 20) - 256);
    blocks.Add(pieces.back());
  }
  EXPECT_GE(blocks.block_bytes(), Cut(pieces));
  EXPECT_LE(blocks.block_bytes(), 2 * Cut(pieces) + kDeviceBlockBytes);
}

}  // namespace
}  // namespace banyan
