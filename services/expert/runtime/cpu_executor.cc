#include "services/expert/runtime/cpu_executor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::expert {
namespace {

// Less than this many multiplications, about 10 us of one thread, is not worth waking others for.
constexpr int64_t kMinParallelMacs = 200'000;
// Activations worth converting on several threads.
constexpr int64_t kMinParallelFloats = 64 << 10;
// Tiles per thread and loop: enough that the last ones end at about the same time.
constexpr int64_t kTilesPerThread = 16;
constexpr int64_t kMaxTile = 64;

// Outputs per tile, so that `outputs` in all make enough tiles for the threads.
int32_t TileSize(int64_t outputs, int num_threads) {
  const int64_t wanted = outputs / (kTilesPerThread * num_threads);
  return static_cast<int32_t>(
      std::clamp<int64_t>(wanted / kOutputTile * kOutputTile, kOutputTile, kMaxTile));
}

int32_t NumTiles(int32_t outputs, int32_t tile) { return (outputs + tile - 1) / tile; }

}  // namespace

void CpuExecutor::FreeDeleter::operator()(float* p) const { std::free(p); }

void CpuExecutor::Buffer::Reserve(int64_t floats) {
  if (floats <= size) return;
  const size_t bytes = static_cast<size_t>(PaddedFloats(floats)) * sizeof(float);
  data.reset();
  data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  CHECK(data != nullptr);
  std::memset(data.get(), 0, bytes);
  size = floats;
}

CpuExecutor::CpuExecutor(const Options& options, const ExpertTable& table,
                         const FfnKernels& kernels, WorkerPool& pool)
    : table_(table),
      kernels_(kernels),
      pool_(pool),
      x_stride_(PaddedFloats(table.geometry.hidden_size)),
      hidden_stride_(PaddedFloats(table.geometry.num_shard_width)),
      max_scratch_bytes_(options.max_scratch_bytes),
      grouping_(table.geometry.first_expert, table.geometry.num_shard_experts) {}

absl::Status CpuExecutor::Check(const ExpertCall& call) {
  const ShardGeometry& g = geometry();
  if (call.layer < 0 || call.layer >= g.num_layers) {
    return InvalidArgumentF("layer {}, expected 0 to {}", call.layer, g.num_layers - 1);
  }
  if (table_.layers[static_cast<size_t>(call.layer)].empty()) {
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

absl::Status CpuExecutor::Run(const ExpertCall& call) {
  RETURN_IF_ERROR(Check(call));
  last_call_ = {};
  const int64_t row_floats = x_stride_ + call.top_k * hidden_stride_ + geometry().hidden_size;
  const int64_t fitting = static_cast<int64_t>(max_scratch_bytes_ / sizeof(float)) / row_floats;
  const auto block = static_cast<int32_t>(std::clamp<int64_t>(fitting, 1, call.num_rows));
  for (int32_t first = 0; first < call.num_rows; first += block) {
    RunBlock(call, first, std::min(block, call.num_rows - first));
  }
  return absl::OkStatus();
}

void CpuExecutor::RunBlock(const ExpertCall& call, int32_t first_row, int32_t num_rows) {
  const ShardGeometry& g = geometry();
  const std::vector<ExpertWeights>& experts = table_.layers[static_cast<size_t>(call.layer)];
  grouping_.Group(call, first_row, num_rows);
  const auto num_pairs = static_cast<int64_t>(grouping_.rows().size());
  last_call_.num_pairs += num_pairs;
  last_call_.num_experts += static_cast<int64_t>(grouping_.groups().size());
  for (const ExpertGroup& group : grouping_.groups()) {
    last_call_.weight_bytes += ExpertSliceBytes(experts[static_cast<size_t>(group.expert)], g);
  }
  x_.Reserve(num_rows * x_stride_);
  hidden_.Reserve(num_pairs * hidden_stride_);
  if (call.reply_type == ActivationType::kBF16) sum_.Reserve(int64_t{num_rows} * g.hidden_size);

  const int64_t macs = num_pairs * g.hidden_size * g.num_shard_width * 3;
  const bool in_caller = pool_.num_threads() == 1 || macs < kMinParallelMacs;
  LoadActivations(call, first_row, num_rows);
  GateUp(experts, in_caller);
  Down(call, experts, first_row, num_rows, in_caller);
}

void CpuExecutor::LoadActivations(const ExpertCall& call, int32_t first_row, int32_t num_rows) {
  const int64_t hidden_size = geometry().hidden_size;
  const auto load = [&](int64_t row, int) {
    float* const out = x_.data.get() + row * x_stride_;
    const int64_t at = (first_row + row) * hidden_size;
    if (call.activation_type == ActivationType::kBF16) {
      kernels_.widen(call.activations + at * 2, hidden_size, out);
    } else {
      std::memcpy(out, call.activations + at * 4, static_cast<size_t>(hidden_size) * 4);
    }
  };
  if (num_rows * hidden_size < kMinParallelFloats) {
    for (int64_t row = 0; row < num_rows; ++row) load(row, 0);
  } else {
    pool_.ParallelFor(num_rows, load);
  }
}

void CpuExecutor::GateUp(const std::vector<ExpertWeights>& experts, bool in_caller) {
  const std::span<const ExpertGroup> groups = grouping_.groups();
  const int32_t width = geometry().num_shard_width;
  const int32_t tile =
      in_caller ? width
                : TileSize(static_cast<int64_t>(groups.size()) * width, pool_.num_threads());
  const int32_t tiles = NumTiles(width, tile);
  const auto run = [&](int64_t t, int) {
    const ExpertGroup& group = groups[static_cast<size_t>(t / tiles)];
    const auto first = static_cast<int32_t>(t % tiles) * tile;
    kernels_.gate_up({
        .weights = &experts[static_cast<size_t>(group.expert)],
        .hidden_size = geometry().hidden_size,
        .first_output = first,
        .end_output = std::min(first + tile, width),
        .num_rows = group.num_pairs,
        .rows = grouping_.rows().data() + group.first_pair,
        .x = x_.data.get(),
        .x_stride = x_stride_,
        .hidden = hidden_.data.get() + group.first_pair * hidden_stride_,
        .hidden_stride = hidden_stride_,
    });
  };
  const int64_t num_tiles = static_cast<int64_t>(groups.size()) * tiles;
  if (in_caller) {
    for (int64_t t = 0; t < num_tiles; ++t) run(t, 0);
  } else {
    pool_.ParallelFor(num_tiles, run);
  }
}

void CpuExecutor::Down(const ExpertCall& call, const std::vector<ExpertWeights>& experts,
                       int32_t first_row, int32_t num_rows, bool in_caller) {
  const int32_t hidden_size = geometry().hidden_size;
  const bool reply_f32 = call.reply_type == ActivationType::kF32;
  const int64_t out_at = int64_t{first_row} * hidden_size;
  float* const sum = reply_f32 ? reinterpret_cast<float*>(call.out) + out_at : sum_.data.get();
  BF16* const out = reinterpret_cast<BF16*>(call.out) + out_at;
  const int32_t tile = in_caller ? hidden_size : TileSize(hidden_size, pool_.num_threads());
  const auto run = [&](int64_t t, int) {
    const auto first = static_cast<int32_t>(t) * tile;
    const int32_t end = std::min(first + tile, hidden_size);
    for (int64_t row = 0; row < num_rows; ++row) {
      std::fill(sum + row * hidden_size + first, sum + row * hidden_size + end, 0.0f);
    }
    for (const ExpertGroup& group : grouping_.groups()) {
      kernels_.down({
          .weights = &experts[static_cast<size_t>(group.expert)],
          .width = geometry().num_shard_width,
          .first_output = first,
          .end_output = end,
          .num_rows = group.num_pairs,
          .rows = grouping_.rows().data() + group.first_pair,
          .routing_weights = grouping_.weights().data() + group.first_pair,
          .hidden = hidden_.data.get() + group.first_pair * hidden_stride_,
          .hidden_stride = hidden_stride_,
          .sum = sum,
          .sum_stride = hidden_size,
      });
    }
    if (reply_f32) return;
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t at = row * hidden_size + first;
      kernels_.narrow(sum + at, end - first, out + at);
    }
  };
  const int32_t tiles = NumTiles(hidden_size, tile);
  if (in_caller) {
    for (int64_t t = 0; t < tiles; ++t) run(t, 0);
  } else {
    pool_.ParallelFor(tiles, run);
  }
}

}  // namespace banyan::expert
