// How the outputs of a loop are cut into tiles for the threads.
#pragma once

#include <cstdint>

namespace banyan::expert {

constexpr int32_t NumTiles(int32_t outputs, int32_t tile) { return (outputs + tile - 1) / tile; }

// Outputs per tile, a multiple of `unit` of at most max_tile, so that `outputs` in all make some
// 16 tiles a thread: the last ones then end at about the same time.
int32_t TileSize(int64_t outputs, int num_threads, int32_t unit, int32_t max_tile);

// The same for tiles each of which reads all hidden vectors: of the sizes that make eight tiles a
// thread, or two where that is at most 64 outputs, four streams of weights, the one whose busiest
// thread has fewest outputs, since tiles take equally long; among equals the widest.
int32_t WideTileSize(int32_t outputs, int num_threads, int32_t unit, int32_t max_tile);

}  // namespace banyan::expert
