#include "services/trunk/ops/cpu/host_experts.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/plan/op_scratch.h"
#include "common/quant/bf16.h"
#include "common/quant/packed_expert.h"
#include "common/quant/packed_matrix.h"

namespace banyan::trunk::cpu {

namespace {

// What decoding a weight costs, in multiply-adds: 2 to 3 ns (Zen 4).
constexpr int64_t kDecodeCost = 100;

// In place; f32 still.
void RoundToBF16(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = ToFloat(ToBF16(values[i]));
}

int64_t PanelOutputs(int64_t panel, int64_t num_outputs) {
  return std::min(kPanelOutputs, num_outputs - panel * kPanelOutputs);
}

}  // namespace

void HostExperts::Reserve(const OpLimits& limits, int num_threads) {
  const CpuHostExpertScratch scratch = CpuHostExpertScratchOf(limits);
  max_pairs_ = scratch.pairs;
  if (max_pairs_ == 0) return;
  shape_ = limits.host_experts;
  thread_floats_ = scratch.thread_floats;
  const auto pairs = static_cast<size_t>(max_pairs_);
  input_.resize(pairs * static_cast<size_t>(shape_.hidden_size));
  gate_.resize(pairs * static_cast<size_t>(shape_.width));
  up_.resize(gate_.size());
  thread_scratch_.resize(static_cast<size_t>(thread_floats_ * num_threads));
}

void HostExperts::Run(const KernelTable& kernels, const Parallel& parallel,
                      const HostExpertsArgs& args) {
  CHECK(args.hidden_size <= shape_.hidden_size && args.width <= shape_.width);
  for (const HostExpert& expert : args.experts) {
    const int32_t end = expert.first_pair + expert.num_pairs;
    for (int32_t first = expert.first_pair; first < end; first += max_pairs_) {
      const Group group = {.weights = expert.weights,
                           .rows = args.pair_rows.data() + first,
                           .pair_weights = args.pair_weights.data() + first,
                           .num_pairs = std::min(max_pairs_, end - first)};
      Gather(parallel, args, group);
      GateAndUp(kernels, parallel, args, group);
      Down(kernels, parallel, args, group);
    }
  }
}

void HostExperts::Gather(const Parallel& parallel, const HostExpertsArgs& args,
                         const Group& group) {
  const int64_t n = args.hidden_size;
  const auto* const rows = reinterpret_cast<const BF16*>(args.rows.host);
  parallel.For(group.num_pairs, group.num_pairs * n, [&](int64_t pair, int) {
    const BF16* const from = rows + group.rows[pair] * n;
    float* const to = input_.data() + pair * n;
    for (int64_t i = 0; i < n; ++i) to[i] = ToFloat(from[i]);
  });
}

void HostExperts::GateAndUp(const KernelTable& kernels, const Parallel& parallel,
                            const HostExpertsArgs& args, const Group& group) {
  const PackedExpertLayout layout = PackedExpertLayoutOf(args.format, args.hidden_size, args.width);
  const int64_t width = args.width;
  const int64_t cost = 2 * width * args.hidden_size * (group.num_pairs + kDecodeCost);
  parallel.For(NumPanels(width), cost, [&](int64_t panel, int thread) {
    const int64_t begin = panel * kPanelOutputs;
    const int64_t outputs = PanelOutputs(panel, width);
    const auto multiply = [&](int64_t offset, float* y) {
      Multiply(kernels, args.format, {group.weights + offset, panel, width, args.hidden_size},
               input_.data(), group.num_pairs, ThreadScratch(thread), y + begin, width);
    };
    multiply(layout.gate_offset, gate_.data());
    multiply(layout.up_offset, up_.data());
    for (int64_t pair = 0; pair < group.num_pairs; ++pair) {
      float* const gate = gate_.data() + pair * width + begin;
      kernels.swiglu(gate, up_.data() + pair * width + begin, outputs, gate);
      RoundToBF16(gate, outputs);
    }
  });
}

void HostExperts::Down(const KernelTable& kernels, const Parallel& parallel,
                       const HostExpertsArgs& args, const Group& group) {
  const PackedExpertLayout layout = PackedExpertLayoutOf(args.format, args.hidden_size, args.width);
  const int64_t hidden_size = args.hidden_size;
  const int64_t cost = hidden_size * args.width * (group.num_pairs + kDecodeCost);
  parallel.For(NumPanels(hidden_size), cost, [&](int64_t panel, int thread) {
    const int64_t outputs = PanelOutputs(panel, hidden_size);
    float* const decoded = ThreadScratch(thread);
    float* const y = decoded + kPanelOutputs * args.width;
    Multiply(kernels, args.format,
             {group.weights + layout.down_offset, panel, hidden_size, args.width}, gate_.data(),
             group.num_pairs, decoded, y, outputs);
    for (int64_t pair = 0; pair < group.num_pairs; ++pair) {
      float* const to = args.hidden + group.rows[pair] * hidden_size + panel * kPanelOutputs;
      const float weight = group.pair_weights[pair];
      for (int64_t i = 0; i < outputs; ++i) to[i] += weight * y[pair * outputs + i];
    }
  });
}

void HostExperts::Multiply(const KernelTable& kernels, PoolFormat format, const Panel& panel,
                           const float* x, int32_t num_rows, float* decoded, float* y,
                           int64_t ldy) {
  // Panels of every format lie one behind the other; rows of bf16 are panels of as many.
  const int64_t panel_bytes = PackedMatrixBytes(format, kPanelOutputs, panel.k);
  const int64_t outputs = PanelOutputs(panel.panel, panel.num_outputs);
  UnpackMatrix(format, panel.matrix + panel.panel * panel_bytes, outputs, panel.k, decoded);
  RoundToBF16(decoded, outputs * panel.k);
  kernels.linear_f32({.x = x,
                      .ldx = panel.k,
                      .num_rows = num_rows,
                      .w = reinterpret_cast<const std::byte*>(decoded),
                      .k = panel.k,
                      .y = y,
                      .ldy = ldy,
                      .begin = 0,
                      .end = outputs});
}

}  // namespace banyan::trunk::cpu
