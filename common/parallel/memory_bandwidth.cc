#include "common/parallel/memory_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

namespace banyan {
namespace {

using Clock = std::chrono::steady_clock;

// A tile takes tens of microseconds: many per look at the clock, few enough to share evenly.
constexpr size_t kTileBytes = size_t{256} << 10;
constexpr int64_t kTilesPerThread = 32;

using Tile = std::span<const std::byte>;

// A cache line a turn in eight independent sums, which compilers keep in vector registers.
uint64_t ReadTile(Tile tile) {
  constexpr size_t kLanes = 8;
  constexpr size_t kLineBytes = kLanes * sizeof(uint64_t);
  uint64_t sums[kLanes] = {};
  const std::byte* p = tile.data();
  for (size_t line = 0; line < tile.size() / kLineBytes; ++line, p += kLineBytes) {
    uint64_t values[kLanes];
    std::memcpy(values, p, kLineBytes);
    for (size_t i = 0; i < kLanes; ++i) sums[i] += values[i];
  }
  uint64_t sum = 0;
  for (const uint64_t value : sums) sum += value;
  return sum;
}

// Walks over `memory` tile by tile, for ever.
class Tiles {
 public:
  explicit Tiles(std::span<const Tile> memory) : memory_(memory) {}

  Tile Next() {
    while (offset_ >= memory_[index_].size()) {
      index_ = (index_ + 1) % memory_.size();
      offset_ = 0;
    }
    const Tile rest = memory_[index_].subspan(offset_);
    const Tile tile = rest.first(std::min(kTileBytes, rest.size()));
    offset_ += tile.size();
    return tile;
  }

 private:
  const std::span<const Tile> memory_;
  size_t index_ = 0;
  size_t offset_ = 0;
};

}  // namespace

double MeasureReadBandwidth(WorkerPool& pool, std::span<const std::span<const std::byte>> memory,
                            absl::Duration duration) {
  if (std::all_of(memory.begin(), memory.end(), [](Tile piece) { return piece.empty(); })) return 0;
  Tiles tiles(memory);
  std::vector<Tile> pass(static_cast<size_t>(pool.num_threads() * kTilesPerThread));
  std::atomic<uint64_t> sink{0};  // so that no read is left out
  const auto read_pass = [&] {
    uint64_t bytes = 0;
    for (Tile& tile : pass) {
      tile = tiles.Next();
      bytes += tile.size();
    }
    pool.ParallelFor(static_cast<int64_t>(pass.size()), [&](int64_t i, int /*thread*/) {
      sink.fetch_add(ReadTile(pass[static_cast<size_t>(i)]), std::memory_order_relaxed);
    });
    return bytes;
  };
  read_pass();  // wakes the threads

  const auto limit = absl::ToChronoNanoseconds(duration);
  const Clock::time_point start = Clock::now();
  Clock::time_point now = start;
  double best = 0;
  do {
    const Clock::time_point begin = now;
    const uint64_t bytes = read_pass();
    now = Clock::now();
    const std::chrono::duration<double> seconds = now - begin;
    best = std::max(best, static_cast<double>(bytes) / std::max(seconds.count(), 1e-9));
  } while (now - start < limit);
  return best;
}

}  // namespace banyan
