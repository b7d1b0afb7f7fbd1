#include "services/trunk/ops/cpu/linear.h"

#include <algorithm>
#include <array>

#include "common/base/check.h"

namespace banyan::trunk::cpu {

static_assert(kTileInt8GroupColumns == kInt8GroupColumns);

namespace {

// Outputs of one tile: a few per thread for balance, whole register tiles, and at least a quarter
// of a million multiply-adds so that taking a tile costs nothing.
int64_t OutputsPerTile(int64_t outputs, int64_t cost_per_output, int num_threads) {
  constexpr int64_t kRegisterTile = 8;
  constexpr int64_t kTilesPerThread = 4;
  constexpr int64_t kMinCost = 256 * 1024;
  const int64_t balanced = outputs / (num_threads * kTilesPerThread);
  const int64_t heavy = kMinCost / std::max<int64_t>(cost_per_output, 1);
  // But never so heavy that a thread stays without a tile.
  const int64_t per_thread = (outputs + num_threads - 1) / num_threads;
  const int64_t wanted = std::min(std::max(balanced, heavy), per_thread);
  return std::max<int64_t>((wanted + kRegisterTile - 1) / kRegisterTile, 1) * kRegisterTile;
}

}  // namespace

void Linear(const KernelTable& kernels, const Parallel& parallel, int32_t num_rows,
            std::span<const LinearArgs> calls) {
  CHECK(calls.size() <= kMaxLinearCalls);
  if (num_rows == 0) return;
  int64_t outputs = 0;
  int64_t cost = 0;
  for (const LinearArgs& call : calls) {
    outputs += call.w->rows;
    cost += int64_t{call.w->rows} * call.w->cols * num_rows;
  }
  const int64_t step =
      OutputsPerTile(outputs, cost / std::max<int64_t>(outputs, 1), parallel.num_threads());
  std::array<int64_t, kMaxLinearCalls + 1> first_tile{};
  for (size_t i = 0; i < calls.size(); ++i) {
    first_tile[i + 1] = first_tile[i] + (calls[i].w->rows + step - 1) / step;
  }
  parallel.For(first_tile[calls.size()], cost, [&](int64_t tile, int) {
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
                             .end = std::min<int64_t>(begin + step, call.w->rows)};
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
