#include "common/parallel/memory_bandwidth.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <vector>

namespace banyan {
namespace {

using Piece = std::span<const std::byte>;

TEST(MemoryBandwidthTest, NothingToReadIsZero) {
  WorkerPool pool({.num_threads = 1});
  EXPECT_EQ(MeasureReadBandwidth(pool, {}, absl::Milliseconds(1)), 0);
  const std::vector<Piece> empty(3);
  EXPECT_EQ(MeasureReadBandwidth(pool, empty, absl::Milliseconds(1)), 0);
}

TEST(MemoryBandwidthTest, MeasuresPiecesOfAnySize) {
  WorkerPool pool({.num_threads = 2});
  const std::vector<std::byte> memory(3 << 20);
  const Piece all(memory);
  // Below a cache line, empty, not a multiple of a tile, one tile.
  const std::vector<Piece> pieces = {all.first(5), all.first(0), all.subspan(7, 1000001),
                                     all.first(256 << 10)};
  EXPECT_GT(MeasureReadBandwidth(pool, pieces, absl::ZeroDuration()), 0);
  EXPECT_GT(MeasureReadBandwidth(pool, pieces, absl::Milliseconds(2)), 0);
}

// Reads every byte and none beyond: pages before and after may not be touched.
TEST(MemoryBandwidthTest, StaysInsideThePiece) {
  constexpr size_t kPage = 4096;
  void* const mapped = mmap(nullptr, 3 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto* const page = static_cast<std::byte*>(mapped) + kPage;
  ASSERT_EQ(mprotect(page, kPage, PROT_READ), 0);
  WorkerPool pool({.num_threads = 2});
  const std::vector<Piece> pieces = {{page, kPage}, {page + 1, kPage - 1}, {page + kPage - 9, 9}};
  EXPECT_GT(MeasureReadBandwidth(pool, pieces, absl::Milliseconds(1)), 0);
  munmap(mapped, 3 * kPage);
}

}  // namespace
}  // namespace banyan
