#include "services/expert/runtime/grouped_executor.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/expert/runtime/output_tiles.h"

namespace banyan::expert {
namespace {

// Less than this many multiplications, about 10 us of one thread, is not worth waking others for.
constexpr int64_t kMinParallelMacs = 200'000;
// Activations worth converting on several threads.
constexpr int64_t kMinParallelFloats = 64 << 10;
// Rows whose copying takes longer than threads poll, on the CPUs that they would poll on.
constexpr int32_t kRestRows = 256;
// Fewer end at about the same time with any tiles, and share less of a cache.
constexpr int kLeastThreadsByExpert = 4;

// Reads of the clock between the phases of a call.
class Stopwatch {
 public:
  void Lap(double* seconds) {
    const auto now = std::chrono::steady_clock::now();
    *seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

void ScratchBuffer::FreeDeleter::operator()(std::byte* p) const { std::free(p); }

void ScratchBuffer::Reserve(int64_t bytes, int64_t spare) {
  if (bytes <= size_) return;
  bytes += spare;
  const auto rounded = static_cast<size_t>((bytes + 63) / 64 * 64);
  data_.reset();
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, rounded)));
  CHECK(data_ != nullptr);
  std::memset(data_.get(), 0, rounded);
  size_ = bytes;
}

GroupedExecutor::GroupedExecutor(const Options& options, const ShardGeometry& geometry,
                                 const FfnKernels& elementwise, WorkerPool& pool)
    : geometry_(geometry),
      elementwise_(elementwise),
      pool_(pool),
      max_scratch_bytes_(options.max_scratch_bytes),
      min_pairs_by_expert_(options.min_pairs_by_expert),
      max_product_bytes_(options.max_product_bytes),
      grouping_(geometry.first_expert, geometry.num_shard_experts),
      sums_(static_cast<size_t>(pool.num_threads())) {}

absl::Status GroupedExecutor::Check(const ExpertCall& call) {
  const ShardGeometry& g = geometry_;
  if (call.layer < 0 || call.layer >= g.num_layers) {
    return InvalidArgumentF("layer {}, expected 0 to {}", call.layer, g.num_layers - 1);
  }
  if (!HasExperts(call.layer)) {
    return InvalidArgumentF("layer {} has no routed experts", call.layer);
  }
  if (call.num_rows < 1 || call.num_rows > g.max_rows) {
    return InvalidArgumentF("{} rows, expected 1 to {}", call.num_rows, g.max_rows);
  }
  if (call.top_k < 1 || call.top_k > g.max_top_k) {
    return InvalidArgumentF("top_k {}, expected 1 to {}", call.top_k, g.max_top_k);
  }
  return Annotate(grouping_.Check(call), fmt::format("layer {}", call.layer));
}

absl::Status GroupedExecutor::Run(const ExpertCall& call) {
  RETURN_IF_ERROR(Check(call));
  last_call_ = {};
  const RowLayout layout = BeginCall(call);
  const int64_t row_bytes = layout.x_bytes + call.top_k * layout.hidden_bytes;
  const int64_t fitting = static_cast<int64_t>(max_scratch_bytes_) / row_bytes;
  const auto block = static_cast<int32_t>(std::clamp<int64_t>(fitting, 1, call.num_rows));
  for (int32_t first = 0; first < call.num_rows; first += block) {
    RunBlock(call, layout, first, std::min(block, call.num_rows - first));
  }
  if (call.num_rows >= kRestRows) pool_.Rest();
  return absl::OkStatus();
}

void GroupedExecutor::RunBlock(const ExpertCall& call, const RowLayout& layout, int32_t first_row,
                               int32_t num_rows) {
  const ShardGeometry& g = geometry_;
  Stopwatch watch;
  grouping_.Group(call, first_row, num_rows, layout.hidden_rows);
  const auto num_pairs = static_cast<int64_t>(grouping_.rows().size());
  last_call_.num_pairs += num_pairs;
  last_call_.num_experts += grouping_.num_experts();
  int32_t last_expert = -1;
  for (const ExpertGroup& group : grouping_.groups()) {
    if (std::exchange(last_expert, group.expert) == group.expert) continue;
    last_call_.weight_bytes += ExpertBytes(call.layer, group.expert);
  }
  x_.Reserve(num_rows * layout.x_bytes);
  const int64_t hidden_bytes = grouping_.num_places() * layout.hidden_bytes;
  hidden_.Reserve(hidden_bytes, hidden_bytes / 8);

  const int64_t macs = num_pairs * g.hidden_size * g.num_shard_width * 3;
  const bool small = macs < kMinParallelMacs;
  PrepareRows(call, layout, first_row, num_rows);
  watch.Lap(&last_call_.prepare_s);
  GateUpAll(layout, small);
  watch.Lap(&last_call_.gate_up_s);
  DownAll(call, layout, first_row, num_rows, small);
  watch.Lap(&last_call_.down_s);
}

void GroupedExecutor::PrepareRows(const ExpertCall& call, const RowLayout& layout,
                                  int32_t first_row, int32_t num_rows) {
  const int64_t hidden_size = geometry_.hidden_size;
  const int64_t row_bytes = hidden_size * (call.activation_type == ActivationType::kBF16 ? 2 : 4);
  const auto prepare = [&](int64_t row, int thread) {
    PrepareRow(call.activations + (first_row + row) * row_bytes, call.activation_type,
               x_.data() + row * layout.x_bytes, thread);
  };
  if (num_rows * hidden_size < kMinParallelFloats) {
    for (int64_t row = 0; row < num_rows; ++row) prepare(row, 0);
  } else {
    pool_.ParallelFor(num_rows, prepare);
  }
}

GroupedExecutor::Tile GroupedExecutor::TileOf(const ExpertGroup& group, const RowLayout& layout,
                                              int32_t first, int32_t end, int thread) const {
  return {.expert = group.expert,
          .first_output = first,
          .end_output = end,
          .num_rows = group.num_pairs,
          .rows = grouping_.rows().data() + group.first_pair,
          .routing_weights = grouping_.weights().data() + group.first_pair,
          .x = x_.data(),
          .hidden = hidden_.data() + group.first_place * layout.hidden_bytes,
          .layout = layout,
          .thread = thread};
}

const ExpertGroup& GroupedExecutor::ByLength(int64_t number) const {
  const auto group = grouping_.longest_first()[static_cast<size_t>(number)];
  return grouping_.groups()[static_cast<size_t>(group)];
}

void GroupedExecutor::SetNext(const ExpertGroup& next, int32_t first, Tile* tile) const {
  tile->next_expert = next.expert;
  tile->next_output = first;
  const std::byte* const hidden = hidden_.data() + next.first_place * tile->layout.hidden_bytes;
  if (hidden == tile->hidden) return;
  tile->num_next_rows = next.num_pairs;
  tile->next_rows = grouping_.rows().data() + next.first_pair;
  tile->next_hidden = hidden;
}

void GroupedExecutor::GateUpAll(const RowLayout& layout, bool small) {
  const bool in_caller = small || pool_.num_threads() == 1;
  const std::span<const ExpertGroup> groups = grouping_.groups();
  const int32_t width = geometry_.num_shard_width;
  const int32_t tile =
      in_caller ? width
                : TileSize(static_cast<int64_t>(groups.size()) * width, pool_.num_threads(),
                           layout.gate_up.unit, layout.gate_up.max_tile);
  const int32_t tiles = NumTiles(width, tile);
  const int64_t num_tiles = static_cast<int64_t>(groups.size()) * tiles;
  const int64_t stride = in_caller ? 1 : pool_.num_threads();
  const auto run = [&](int64_t t, int thread) {
    const auto first = static_cast<int32_t>(t % tiles) * tile;
    Tile part = TileOf(ByLength(t / tiles), layout, first, std::min(first + tile, width), thread);
    // The tiles in between are those of the other threads.
    if (const int64_t next = t + stride; next < num_tiles) {
      SetNext(ByLength(next / tiles), static_cast<int32_t>(next % tiles) * tile, &part);
    }
    GateUp(part);
  };
  if (in_caller) {
    for (int64_t t = 0; t < num_tiles; ++t) run(t, 0);
  } else {
    pool_.ParallelFor(num_tiles, run);
  }
}

void GroupedExecutor::DownAll(const ExpertCall& call, const RowLayout& layout, int32_t first_row,
                              int32_t num_rows, bool small) {
  const int32_t hidden_size = geometry_.hidden_size;
  const auto num_pairs = static_cast<int64_t>(grouping_.rows().size());
  if (pool_.num_threads() >= kLeastThreadsByExpert && num_pairs >= min_pairs_by_expert_) {
    return DownByExpert(call, layout, first_row, num_rows);
  }
  const int32_t tile = small ? hidden_size
                             : WideTileSize(hidden_size, pool_.num_threads(), layout.down.unit,
                                            layout.down.max_tile);
  for (ScratchBuffer& sums : sums_) {
    sums.Reserve(int64_t{num_rows} * tile * static_cast<int64_t>(sizeof(float)));
  }
  const std::span<const ExpertGroup> groups = grouping_.groups();
  const bool in_caller = small || pool_.num_threads() == 1;
  const int64_t stride = in_caller ? 1 : pool_.num_threads();
  const auto run = [&](int64_t t, int thread) {
    const auto first = static_cast<int32_t>(t) * tile;
    const int32_t end = std::min(first + tile, hidden_size);
    auto* const sums = reinterpret_cast<float*>(sums_[static_cast<size_t>(thread)].data());
    std::fill(sums, sums + int64_t{num_rows} * tile, 0.0f);
    for (size_t i = 0; i < groups.size(); ++i) {
      Tile part = TileOf(groups[i], layout, first, end, thread);
      if (i + 1 < groups.size()) {
        SetNext(groups[i + 1], first, &part);
      } else if (const int64_t next = (t + stride) * tile; next < hidden_size) {
        SetNext(groups.front(), static_cast<int32_t>(next), &part);
      }
      Down(part, sums - first, tile);
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      Reply(call, first_row + row, first, end, sums + row * tile);
    }
  };
  const int32_t tiles = NumTiles(hidden_size, tile);
  if (in_caller) {
    for (int64_t t = 0; t < tiles; ++t) run(t, 0);
  } else {
    pool_.ParallelFor(tiles, run);
  }
}

void GroupedExecutor::Reply(const ExpertCall& call, int64_t row, int32_t first, int32_t end,
                            const float* sums) const {
  const int64_t at = row * geometry_.hidden_size + first;
  if (call.reply_type == ActivationType::kF32) {
    std::memcpy(reinterpret_cast<float*>(call.out) + at, sums,
                static_cast<size_t>(end - first) * sizeof(float));
  } else {
    elementwise_.narrow(sums, end - first, reinterpret_cast<BF16*>(call.out) + at);
  }
}

}  // namespace banyan::expert
