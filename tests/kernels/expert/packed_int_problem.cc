#include "tests/kernels/expert/packed_int_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/packed_matrix.h"
#include "common/quant/reference.h"

namespace banyan::expert::testing {
namespace {

constexpr int64_t kGroup = 32;
constexpr double kFloatRounding = 0x1p-24;

// Values that a kernel holds in f32 or as quantised numbers: the true one, and how far off.
struct Values {
  std::vector<double> value;
  std::vector<double> bound;
};

// Preparing moves a value by half a step of its group, a little more where the product with the
// rounded reciprocal crosses a half (|q| * 2^-23 < 0.004) and by the rounding of the scale.
Values PreparedOf(const Values& x, Precision precision) {
  const double limit = precision == Precision::kExact ? 32639 : 127;
  Values out = x;
  for (size_t first = 0; first < x.value.size(); first += kGroup) {
    const size_t end = std::min(first + kGroup, x.value.size());
    double amax = 0;
    bool on_grid = true;
    for (size_t i = first; i < end; ++i) {
      amax = std::max(amax, std::abs(x.value[i]) + x.bound[i]);
      on_grid = on_grid && x.bound[i] == 0 && x.value[i] == std::nearbyint(x.value[i]);
    }
    const bool exact = on_grid && precision == Precision::kFast && amax == 127;
    for (size_t i = first; i < end && !exact; ++i) {
      out.bound[i] += amax / limit * 0.505 + amax * 2 * kFloatRounding;
    }
  }
  return out;
}

// Of each output: the dot product; sums of groups, products of scales and accumulation each round.
Values DotsOf(const PackedTestMatrix& matrix, const Values& x) {
  const double roundings = static_cast<double>((matrix.k + kGroup - 1) / kGroup) + 3;
  Values out;
  for (int64_t o = 0; o < matrix.num_outputs; ++o) {
    const float* w = matrix.weights.data() + o * matrix.k;
    double value = 0;
    double bound = 0;
    double norm = 0;
    for (int64_t i = 0; i < matrix.k; ++i) {
      const auto at = static_cast<size_t>(i);
      const double magnitude = std::abs(static_cast<double>(w[i]));
      value += w[i] * x.value[at];
      bound += magnitude * x.bound[at];
      norm += magnitude * (std::abs(x.value[at]) + x.bound[at]);
    }
    out.value.push_back(value);
    out.bound.push_back(bound + roundings * kFloatRounding * norm);
  }
  return out;
}

std::vector<float> RandomFloats(size_t n, float scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& value : out) value = normal(random);
  return out;
}

}  // namespace

AlignedBytes::AlignedBytes(int64_t bytes)
    : data_(static_cast<std::byte*>(
          std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)))) {
  CHECK(data_ != nullptr);
  std::memset(data_.get(), 0xa5, static_cast<size_t>((bytes + 63) / 64 * 64));
}

PackedTestMatrix::PackedTestMatrix(PoolFormat format, int64_t outputs, int64_t inputs, bool zero,
                                   std::mt19937& random)
    : num_outputs(outputs), k(inputs), packed(PackedMatrixBytes(format, outputs, inputs)) {
  const auto n = static_cast<size_t>(outputs * inputs);
  weights = RandomFloats(n, zero ? 0.0f : 1.0f / std::sqrt(static_cast<float>(inputs)), random);
  // Groups of very different scales, and one of zeros.
  for (size_t i = 0; i < n; ++i) weights[i] *= std::ldexp(1.0f, static_cast<int>(i / 96 % 5) - 2);
  std::fill(weights.begin(), weights.begin() + std::min<int64_t>(inputs, kGroup), 0.0f);
  PackMatrix(format,
             {.data = weights.data(), .num_outputs = outputs, .k = inputs, .row_stride = inputs},
             packed.data());
  UnpackMatrix(format, packed.data(), outputs, inputs, weights.data());
}

PackedProblem::PackedProblem(PoolFormat format, const PackedShape& s, std::mt19937& random,
                             bool zero_gate)
    : shape(s),
      gate_proj(format, s.width, s.hidden_size, zero_gate, random),
      up_proj(format, s.width, s.hidden_size, false, random),
      down_proj(format, s.hidden_size, s.width, false, random),
      expert{gate_proj.packed.data(), up_proj.packed.data(), down_proj.packed.data()},
      x(RandomFloats(static_cast<size_t>(2 * s.num_rows * s.hidden_size), 1.0f, random)) {
  std::uniform_int_distribution<int> grid(-127, 127);
  for (int32_t i = 0; i < s.num_rows; ++i) {
    rows.push_back(2 * (s.num_rows - 1 - i));
    routing_weights.push_back(0.1f + static_cast<float>(i % 7));
    float* const values = x.data() + int64_t{rows.back()} * s.hidden_size;
    for (int32_t c = 0; c < s.hidden_size && i % 2 == 1; ++c) {
      values[c] = c % kGroup == 5 || c % kGroup == s.hidden_size % kGroup - 1
                      ? 127.0f
                      : static_cast<float>(grid(random));
    }
  }
}

void RunPacked(const PackedKernels& kernels, const PackedProblem& p, int32_t first, int32_t n,
               const PanelCut& cut, std::vector<float>* sum, bool add) {
  const PackedShape& s = p.shape;
  const int64_t x_stride = kernels.row_bytes(s.hidden_size) + 64;
  const int64_t hidden_stride = kernels.row_bytes(s.width) + 128;
  AlignedBytes x(2 * s.num_rows * x_stride);
  AlignedBytes hidden(kernels.hidden_rows(n) * hidden_stride);
  AlignedBytes scratch(kernels.scratch_bytes);
  for (int32_t i = 0; i < 2 * s.num_rows; ++i) {
    kernels.prepare(p.row(i), s.hidden_size, x.data() + i * x_stride);
  }
  if (kernels.enter_thread != nullptr) kernels.enter_thread();
  // Huge floats: nothing may depend on what an earlier call left there.
  const auto soil_scratch = [&] {
    std::memset(scratch.data(), 0x7f, static_cast<size_t>(kernels.scratch_bytes));
  };
  const auto panels = static_cast<int32_t>(NumPanels(s.width));
  for (int32_t panel = 0; panel < panels; panel += cut.gate_up) {
    soil_scratch();
    const bool last = panel + cut.gate_up >= panels;
    kernels.gate_up({.weights = &p.expert,
                     .hidden_size = s.hidden_size,
                     .width = s.width,
                     .first_panel = panel,
                     .end_panel = std::min(panels, panel + cut.gate_up),
                     .num_rows = n,
                     .rows = p.rows.data() + first,
                     .x = x.data(),
                     .x_stride = x_stride,
                     .hidden = hidden.data(),
                     .hidden_stride = hidden_stride,
                     .scratch = scratch.data(),
                     .next = last ? nullptr : &p.expert,
                     .next_panel = last ? 0 : panel + cut.gate_up,
                     .next_rows = last ? nullptr : p.rows.data() + first,
                     .num_next_rows = last ? 0 : n});
  }
  const auto out_panels = static_cast<int32_t>(NumPanels(s.hidden_size));
  for (int32_t panel = 0; panel < out_panels; panel += cut.down) {
    soil_scratch();
    const bool last = panel + cut.down >= out_panels;
    kernels.down({.weights = &p.expert,
                  .hidden_size = s.hidden_size,
                  .width = s.width,
                  .first_panel = panel,
                  .end_panel = std::min(out_panels, panel + cut.down),
                  .num_rows = n,
                  .rows = p.rows.data() + first,
                  .routing_weights = p.routing_weights.data() + first,
                  .hidden = hidden.data(),
                  .hidden_stride = hidden_stride,
                  .sum = sum->data(),
                  .sum_stride = s.hidden_size,
                  .add = add,
                  .scratch = scratch.data(),
                  .next = last ? nullptr : &p.expert,
                  .next_panel = last ? 0 : panel + cut.down,
                  .next_hidden = last ? nullptr : hidden.data(),
                  .num_next_rows = last ? 0 : n});
  }
}

PackedOracle OracleOfPair(const PackedProblem& p, Precision precision, int32_t i) {
  const float* row = p.row(p.rows[static_cast<size_t>(i)]);
  Values x;
  x.value.assign(row, row + p.shape.hidden_size);
  x.bound.assign(x.value.size(), 0.0);
  const Values prepared = PreparedOf(x, precision);
  const Values gate = DotsOf(p.gate_proj, prepared);
  const Values up = DotsOf(p.up_proj, prepared);
  Values hidden;
  for (size_t j = 0; j < gate.value.size(); ++j) {
    const double silu = ReferenceSilu(gate.value[j]);
    // |silu'| <= 1.1. The kernels' SiLU is within 4 units in the last place, the product rounds.
    const double silu_bound = 1.1 * gate.bound[j] + 8 * kFloatRounding * std::abs(silu);
    const double value = silu * up.value[j];
    const double bound =
        silu_bound * (std::abs(up.value[j]) + up.bound[j]) + std::abs(silu) * up.bound[j];
    hidden.value.push_back(value);
    hidden.bound.push_back(bound + kFloatRounding * (std::abs(value) + bound) + 1e-37);
  }
  const Values down = DotsOf(p.down_proj, PreparedOf(hidden, precision));
  PackedOracle out;
  const double weight = p.routing_weights[static_cast<size_t>(i)];
  for (size_t o = 0; o < down.value.size(); ++o) {
    out.value.push_back(weight * down.value[o]);
    const double bound = weight * down.bound[o];
    out.bound.push_back(bound + 2 * kFloatRounding * (std::abs(out.value[o]) + bound));
  }
  return out;
}

}  // namespace banyan::expert::testing
