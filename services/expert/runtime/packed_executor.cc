#include "services/expert/runtime/packed_executor.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"

namespace banyan::expert {
namespace {

// Outputs that a call of gate and up takes at most: kernels arrange the rows of a call for
// themselves, so the fewer the better.
constexpr int32_t kMaxGateUpTile = 512;
constexpr int32_t kMaxDownTile = 256;
constexpr int32_t kPanel = kPanelOutputs;

int32_t EndPanel(int32_t end_output) { return (end_output + kPanel - 1) / kPanel; }

}  // namespace

PackedExecutor::PackedExecutor(const Options& options, const PackedTable& table,
                               const PackedKernelPair& kernels, const FfnKernels& elementwise,
                               WorkerPool& pool)
    : GroupedExecutor(options, table.geometry, elementwise, pool),
      table_(table),
      pair_(kernels),
      workers_(static_cast<size_t>(pool.num_threads())) {
  CHECK(pair_.exact != nullptr && pair_.fast != nullptr);
  CHECK(pair_.exact->format == table.format && pair_.fast->format == table.format);
  for (Worker& worker : workers_) {
    worker.kernel.Reserve(std::max(pair_.exact->scratch_bytes, pair_.fast->scratch_bytes));
    worker.row.Reserve(PaddedFloats(geometry().hidden_size) * static_cast<int64_t>(sizeof(float)));
  }
}

bool PackedExecutor::HasExperts(int32_t layer) const {
  return !table_.layers[static_cast<size_t>(layer)].empty();
}

uint64_t PackedExecutor::ExpertBytes(int32_t, int32_t) const { return table_.expert_bytes; }

GroupedExecutor::RowLayout PackedExecutor::BeginCall(const ExpertCall& call) {
  kernels_ = call.activation_type == ActivationType::kF32 ? pair_.exact : pair_.fast;
  layer_ = &table_.layers[static_cast<size_t>(call.layer)];
  return {.x_bytes = kernels_->row_bytes(geometry().hidden_size),
          .hidden_bytes = kernels_->row_bytes(geometry().num_shard_width),
          .hidden_rows = kernels_->hidden_rows,
          .gate_up = {kGateUpPanels * kPanel, kMaxGateUpTile},
          .down = {kPanel, kMaxDownTile}};
}

PackedExecutor::Worker& PackedExecutor::Enter(int thread) {
  Worker& worker = workers_[static_cast<size_t>(thread)];
  if (kernels_->enter_thread != nullptr && worker.entered != kernels_->enter_thread) {
    kernels_->enter_thread();
    worker.entered = kernels_->enter_thread;
  }
  return worker;
}

void PackedExecutor::PrepareRow(const std::byte* x, ActivationType type, std::byte* out,
                                int thread) {
  Worker& worker = Enter(thread);
  const int64_t hidden_size = geometry().hidden_size;
  auto* const row = reinterpret_cast<float*>(worker.row.data());
  if (type == ActivationType::kBF16) {
    elementwise().widen(x, hidden_size, row);
  } else {
    std::memcpy(row, x, static_cast<size_t>(hidden_size) * sizeof(float));
  }
  kernels_->prepare(row, hidden_size, out);
}

const PackedExpert* PackedExecutor::NextOf(const Tile& tile) const {
  return tile.next_expert < 0 ? nullptr : &(*layer_)[static_cast<size_t>(tile.next_expert)];
}

void PackedExecutor::GateUp(const Tile& tile) {
  kernels_->gate_up({
      .weights = &(*layer_)[static_cast<size_t>(tile.expert)],
      .hidden_size = geometry().hidden_size,
      .width = geometry().num_shard_width,
      .first_panel = tile.first_output / kPanel,
      .end_panel = EndPanel(tile.end_output),
      .num_rows = tile.num_rows,
      .rows = tile.rows,
      .x = tile.x,
      .x_stride = tile.layout.x_bytes,
      .hidden = tile.hidden,
      .hidden_stride = tile.layout.hidden_bytes,
      .scratch = Enter(tile.thread).kernel.data(),
      .next = NextOf(tile),
      .next_panel = tile.next_output / kPanel,
      .next_rows = tile.next_rows,
      .num_next_rows = tile.num_next_rows,
  });
}

void PackedExecutor::Down(const Tile& tile, float* sum, int64_t sum_stride) {
  kernels_->down({
      .weights = &(*layer_)[static_cast<size_t>(tile.expert)],
      .hidden_size = geometry().hidden_size,
      .width = geometry().num_shard_width,
      .first_panel = tile.first_output / kPanel,
      .end_panel = EndPanel(tile.end_output),
      .num_rows = tile.num_rows,
      .rows = tile.rows,
      .routing_weights = tile.routing_weights,
      .hidden = tile.hidden,
      .hidden_stride = tile.layout.hidden_bytes,
      .sum = sum,
      .sum_stride = sum_stride,
      .add = tile.add,
      .scratch = Enter(tile.thread).kernel.data(),
      .next = NextOf(tile),
      .next_panel = tile.next_output / kPanel,
      .next_hidden = tile.next_hidden,
      .num_next_rows = tile.num_next_rows,
  });
}

}  // namespace banyan::expert
