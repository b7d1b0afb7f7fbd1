// Down for many rows. Cut by output alone, as for few, each tile reads the hidden vectors of all
// pairs, so tiles are few and long, and the CPU that is slowest at the moment ends last. Here a
// tile is one expert's: its hidden vectors stay in the caches, and there are hundreds. What it
// gives, weight times output for each pair, goes to memory, a slice of the outputs at a time; then
// each row sums its pairs, experts ascending, as the other cut does.
#include <algorithm>
#include <numeric>

#include "services/expert/runtime/grouped_executor.h"
#include "services/expert/runtime/output_tiles.h"

namespace banyan::expert {
namespace {

constexpr int64_t kRowsAtOnce = 16;

// Outputs of a slice, a multiple of `unit`, so that all slices are about as wide.
int32_t SliceWidth(int64_t num_pairs, int32_t outputs, int32_t unit, int64_t max_bytes) {
  const int64_t all = num_pairs * outputs * static_cast<int64_t>(sizeof(float));
  const int64_t slices = std::clamp<int64_t>((all + max_bytes - 1) / max_bytes, 1, outputs);
  return NumTiles(NumTiles(outputs, static_cast<int32_t>(slices)), unit) * unit;
}

}  // namespace

void GroupedExecutor::DownByExpert(const ExpertCall& call, const RowLayout& layout,
                                   int32_t first_row, int32_t num_rows) {
  const int32_t hidden_size = geometry_.hidden_size;
  const std::span<const ExpertGroup> groups = grouping_.groups();
  const auto num_pairs = static_cast<int64_t>(grouping_.rows().size());
  const int32_t slice = SliceWidth(num_pairs, hidden_size, layout.down.unit,
                                   static_cast<int64_t>(max_product_bytes_));
  const int64_t slice_bytes = slice * static_cast<int64_t>(sizeof(float));
  products_.Reserve(num_pairs * slice_bytes);
  auto* const products = reinterpret_cast<float*>(products_.data());
  for (ScratchBuffer& sums : sums_) sums.Reserve(slice_bytes);
  grouping_.IndexByRow(num_rows);
  if (static_cast<int32_t>(numbers_.size()) < num_rows) {
    numbers_.resize(static_cast<size_t>(num_rows));
    std::iota(numbers_.begin(), numbers_.end(), 0);
  }

  for (int32_t first = 0; first < hidden_size; first += slice) {
    const int32_t width = std::min(slice, hidden_size - first);
    const int32_t tile = TileSize(static_cast<int64_t>(groups.size()) * width, pool_.num_threads(),
                                  layout.down.unit, slice);
    const int32_t tiles = NumTiles(width, tile);
    const int64_t num_tiles = static_cast<int64_t>(groups.size()) * tiles;
    pool_.ParallelFor(num_tiles, [&](int64_t t, int thread) {
      const ExpertGroup& group = ByLength(t / tiles);
      const int32_t begin = first + static_cast<int32_t>(t % tiles) * tile;
      const int32_t end = std::min(begin + tile, first + width);
      Tile part = TileOf(group, layout, begin, end, thread);
      part.rows = numbers_.data();
      part.add = false;
      if (const int64_t next = t + pool_.num_threads(); next < num_tiles) {
        SetNext(ByLength(next / tiles), first + static_cast<int32_t>(next % tiles) * tile, &part);
      } else if (first + width < hidden_size) {
        SetNext(ByLength((next - num_tiles) / tiles % static_cast<int64_t>(groups.size())),
                first + width, &part);
      }
      float* const of_group = products + int64_t{group.first_pair} * slice;
      Down(part, of_group - first, slice);
    });
    pool_.ParallelFor((num_rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t t, int thread) {
      auto* const sums = reinterpret_cast<float*>(sums_[static_cast<size_t>(thread)].data());
      const auto end = static_cast<int32_t>(std::min<int64_t>((t + 1) * kRowsAtOnce, num_rows));
      for (auto row = static_cast<int32_t>(t * kRowsAtOnce); row < end; ++row) {
        const std::span<const int32_t> pairs = grouping_.PairsOf(row);
        const std::span<const int32_t> next =
            row + 1 < end ? grouping_.PairsOf(row + 1) : std::span<const int32_t>();
        elementwise_.sum_rows({.rows = products,
                               .stride = slice,
                               .which = pairs.data(),
                               .num = static_cast<int32_t>(pairs.size()),
                               .next = next.data(),
                               .num_next = static_cast<int32_t>(next.size()),
                               .n = width,
                               .out = sums});
        Reply(call, first_row + row, first, first + width, sums);
      }
    });
  }
}

}  // namespace banyan::expert
