#include "services/trunk/ops/cpu/linear.h"

#include <algorithm>
#include <array>

#include "common/base/check.h"

namespace banyan::trunk::cpu {

static_assert(kTileInt8GroupColumns == kInt8GroupColumns);

namespace {

// Outputs of one tile: a few per thread for balance, whole register tiles, and at least a quarter
// of a million multiply-adds so that taking a tile costs nothing.
int64_t OutputsPerTile(const KernelTable& kernels, int64_t outputs, int64_t cost_per_output,
                       int32_t num_rows, int num_threads) {
  const int64_t register_tile = kernels.linear_outputs;
  constexpr int32_t kManyRows = 32;
  const int64_t tiles_per_thread = kernels.linear_arranges && num_rows >= kManyRows ? 1 : 4;
  constexpr int64_t kMinCost = 256 * 1024;
  const int64_t balanced = outputs / (num_threads * tiles_per_thread);
  const int64_t heavy = kMinCost / std::max<int64_t>(cost_per_output, 1);
  // But never so heavy that a thread stays without a tile.
  const int64_t per_thread = (outputs + num_threads - 1) / num_threads;
  const int64_t wanted = std::min(std::max(balanced, heavy), per_thread);
  return std::max<int64_t>((wanted + register_tile - 1) / register_tile, 1) * register_tile;
}

}  // namespace

void Linear(const KernelTable& kernels, const Parallel& parallel, std::byte* scratch,
            int32_t num_rows, std::span<const LinearArgs> calls) {
  CHECK(calls.size() <= kMaxLinearCalls);
  if (num_rows == 0) return;
  int64_t outputs = 0;
  int64_t cost = 0;
  for (const LinearArgs& call : calls) {
    outputs += call.w->rows;
    cost += int64_t{call.w->rows} * call.w->cols * num_rows;
  }
  const int64_t step = OutputsPerTile(kernels, outputs, cost / std::max<int64_t>(outputs, 1),
                                      num_rows, parallel.num_threads());
  std::array<int64_t, kMaxLinearCalls + 1> first_tile{};
  for (size_t i = 0; i < calls.size(); ++i) {
    first_tile[i + 1] = first_tile[i] + (calls[i].w->rows + step - 1) / step;
  }
  parallel.For(first_tile[calls.size()], cost, [&](int64_t tile, int thread) {
    size_t i = 0;
    while (tile >= first_tile[i + 1]) ++i;
    const LinearArgs& call = calls[i];
    const int64_t begin = (tile - first_tile[i]) * step;
    const LinearTile args = {.x = call.x,
                             .ldx = call.w->cols,
                             .num_rows = num_rows,
                             .w = call.w->data,
                             .scales = call.w->scales,
                             .k = call.w->cols,
                             .y = call.y,
                             .ldy = call.w->rows,
                             .begin = begin,
                             .end = std::min<int64_t>(begin + step, call.w->rows),
                             .scratch = scratch + thread * kLinearScratchBytes};
    switch (call.w->dtype) {
      case DType::kBF16:
        return kernels.linear_bf16(args);
      case DType::kI8:
        return kernels.linear_i8(args);
      default:
        return kernels.linear_f32(args);
    }
  });
}

}  // namespace banyan::trunk::cpu
