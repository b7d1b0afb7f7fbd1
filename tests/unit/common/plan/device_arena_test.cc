#include "common/plan/device_arena.h"

#include <gtest/gtest.h>

#include <random>

namespace banyan {
namespace {

TEST(DeviceArenaTest, PiecesOneBehindTheOther) {
  DeviceArena arena;
  EXPECT_EQ(arena.bytes(), 0u);
  arena.Add(1);
  arena.Add(256, 2);
  arena.Add(257);
  arena.Add(0, 5);
  arena.Add(1000, 0);
  EXPECT_EQ(arena.asked_bytes(), 1u + 512 + 257);
  EXPECT_EQ(arena.piece_bytes(), 256u + 512 + 512);
  EXPECT_EQ(arena.bytes(), kDevicePageBytes);
  arena.Add(kDevicePageBytes - arena.piece_bytes());
  EXPECT_EQ(arena.bytes(), kDevicePageBytes);
  arena.Add(1);
  EXPECT_EQ(arena.bytes(), 2 * kDevicePageBytes);
}

TEST(DeviceArenaTest, WhatIsLentLiesWhereLaterPiecesWill) {
  DeviceArena arena;
  arena.Add(kDevicePageBytes);
  arena.AddForNow(3 * kDevicePageBytes - 10);
  EXPECT_EQ(arena.piece_bytes(), kDevicePageBytes);
  EXPECT_EQ(arena.for_now_bytes(), 3 * kDevicePageBytes);
  EXPECT_EQ(arena.bytes(), 4 * kDevicePageBytes);
  arena.Add(2 * kDevicePageBytes);
  EXPECT_EQ(arena.for_now_bytes(), kDevicePageBytes);
  EXPECT_EQ(arena.bytes(), 4 * kDevicePageBytes);
  arena.Add(2 * kDevicePageBytes);
  EXPECT_EQ(arena.for_now_bytes(), 0u);
  EXPECT_EQ(arena.bytes(), 5 * kDevicePageBytes);
}

// At most 255 bytes a piece are lost, and less than a page over all; nothing falls.
TEST(DeviceArenaTest, LittleIsLost) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 100; ++round) {
    DeviceArena arena;
    const uint64_t most = uint64_t{1} << (4 + random() % 30);
    const uint64_t pieces = 1 + random() % 200;
    for (uint64_t i = 0; i < pieces; ++i) {
      const DeviceArena before = arena;
      arena.Add(1 + random() % most);
      EXPECT_GE(arena.bytes(), before.bytes());
      EXPECT_GT(arena.piece_bytes(), before.piece_bytes());
    }
    EXPECT_LT(arena.bytes(), arena.asked_bytes() + 256 * pieces + kDevicePageBytes);
    EXPECT_EQ(arena.bytes() % kDevicePageBytes, 0u);
  }
}

}  // namespace
}  // namespace banyan
