#include "services/expert/runtime/cpu_executor.h"

#include <cstring>

namespace banyan::expert {
namespace {

constexpr int32_t kMaxTile = 64;

int64_t PaddedBytes(int64_t floats) {
  return PaddedFloats(floats) * static_cast<int64_t>(sizeof(float));
}

int64_t Floats(int64_t bytes) { return bytes / static_cast<int64_t>(sizeof(float)); }

}  // namespace

CpuExecutor::CpuExecutor(const Options& options, const ExpertTable& table,
                         const FfnKernels& kernels, WorkerPool& pool)
    : GroupedExecutor(options, table.geometry, kernels, pool), table_(table), kernels_(kernels) {}

bool CpuExecutor::HasExperts(int32_t layer) const {
  return !table_.layers[static_cast<size_t>(layer)].empty();
}

uint64_t CpuExecutor::ExpertBytes(int32_t layer, int32_t expert) const {
  return ExpertSliceBytes(table_.layers[static_cast<size_t>(layer)][static_cast<size_t>(expert)],
                          geometry());
}

GroupedExecutor::RowLayout CpuExecutor::BeginCall(const ExpertCall& call) {
  layer_ = &table_.layers[static_cast<size_t>(call.layer)];
  return {.x_bytes = PaddedBytes(geometry().hidden_size),
          .hidden_bytes = PaddedBytes(geometry().num_shard_width),
          .gate_up = {kOutputTile, kMaxTile},
          .down = {kOutputTile, kMaxTile}};
}

void CpuExecutor::PrepareRow(const std::byte* x, ActivationType type, std::byte* out, int) {
  const int64_t hidden_size = geometry().hidden_size;
  if (type == ActivationType::kBF16) {
    kernels_.widen(x, hidden_size, reinterpret_cast<float*>(out));
  } else {
    std::memcpy(out, x, static_cast<size_t>(hidden_size) * sizeof(float));
  }
}

void CpuExecutor::GateUp(const Tile& tile) {
  kernels_.gate_up({
      .weights = &(*layer_)[static_cast<size_t>(tile.expert)],
      .hidden_size = geometry().hidden_size,
      .first_output = tile.first_output,
      .end_output = tile.end_output,
      .num_rows = tile.num_rows,
      .rows = tile.rows,
      .x = reinterpret_cast<const float*>(tile.x),
      .x_stride = Floats(tile.layout.x_bytes),
      .hidden = reinterpret_cast<float*>(tile.hidden),
      .hidden_stride = Floats(tile.layout.hidden_bytes),
  });
}

void CpuExecutor::Down(const Tile& tile, float* sum, int64_t sum_stride) {
  kernels_.down({
      .weights = &(*layer_)[static_cast<size_t>(tile.expert)],
      .width = geometry().num_shard_width,
      .first_output = tile.first_output,
      .end_output = tile.end_output,
      .num_rows = tile.num_rows,
      .rows = tile.rows,
      .routing_weights = tile.routing_weights,
      .hidden = reinterpret_cast<const float*>(tile.hidden),
      .hidden_stride = Floats(tile.layout.hidden_bytes),
      .sum = sum,
      .sum_stride = sum_stride,
      .add = tile.add,
  });
}

}  // namespace banyan::expert
