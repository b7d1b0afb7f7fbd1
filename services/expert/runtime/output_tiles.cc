#include "services/expert/runtime/output_tiles.h"

#include <algorithm>
#include <limits>

namespace banyan::expert {

int32_t TileSize(int64_t outputs, int num_threads, int32_t unit, int32_t max_tile) {
  constexpr int64_t kTilesPerThread = 16;
  const int64_t wanted = outputs / (kTilesPerThread * num_threads);
  return static_cast<int32_t>(std::clamp<int64_t>(wanted / unit * unit, unit, max_tile));
}

int32_t WideTileSize(int32_t outputs, int num_threads, int32_t unit, int32_t max_tile) {
  int32_t best = unit;
  int64_t best_outputs = std::numeric_limits<int64_t>::max();
  for (int32_t size = max_tile / unit * unit; size >= unit; size -= unit) {
    const int64_t tiles = NumTiles(outputs, size);
    if (tiles < (size > 64 ? 8 : 2) * num_threads) continue;
    const int64_t of_a_thread = (tiles + num_threads - 1) / num_threads * size;
    if (of_a_thread < best_outputs) {
      best_outputs = of_a_thread;
      best = size;
    }
  }
  return best;
}

}  // namespace banyan::expert
