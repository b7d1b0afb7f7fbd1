// Contract of every kernel tier: the gated FFN of one expert over the rows routed to it,
//   sum[row] += routing_weight * down(silu(gate x) * (up x)),
// in two halves with a barrier between them, so that both can be split over outputs.
//
// Weights are used in place in the mapped checkpoint: bf16 or f32, row-major, any byte alignment,
// rows row_stride_bytes apart. Activations and sums are f32.
//
// Order of arithmetic. Every (row, output) pair is one dot product along k with ONE chain of vector
// accumulation, k ascending in steps of `lanes`, then one fixed reduction of the lanes; the SiLU is
// element-wise. Tiles of several rows and outputs only run independent chains side by side. Hence
// the bits of a row depend on the tier, and neither on the other rows of a call, nor on how outputs
// are cut into calls, nor on threads.
//
// Source: model spec 3.7. Thread-safe: no state. No errors: the caller checks sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/quant/bf16.h"

namespace banyan::expert {

enum class WeightType : uint8_t { kBF16, kF32 };

constexpr int64_t WeightBytes(WeightType type) { return type == WeightType::kBF16 ? 2 : 4; }

// A borrowed matrix; its shape is known from where it stands.
struct WeightMatrix {
  const std::byte* data = nullptr;
  int64_t row_stride_bytes = 0;
  WeightType type = WeightType::kBF16;
};

// One expert, or a slice of `width` of its moe_intermediate_size.
struct ExpertWeights {
  WeightMatrix gate_proj;  // [width, hidden_size]: a range of rows of the checkpoint's tensor
  WeightMatrix up_proj;    // [width, hidden_size]
  WeightMatrix down_proj;  // [hidden_size, width]: a range of columns
};

// f32 vectors are stored with a stride of PaddedFloats(n), 64-byte aligned, zero from n on: kernels
// read whole vectors of them.
inline constexpr int64_t kVectorFloats = 16;
constexpr int64_t PaddedFloats(int64_t n) {
  return (n + kVectorFloats - 1) / kVectorFloats * kVectorFloats;
}

// Outputs are cut into calls at multiples of this where speed matters; any cut is correct.
inline constexpr int32_t kOutputTile = 8;

// hidden[i][o] = silu(gate_o x[rows[i]]) * (up_o x[rows[i]]), i in [0, num_rows), o in
// [first_output, end_output).
struct GateUpArgs {
  const ExpertWeights* weights = nullptr;
  int32_t hidden_size = 0;
  int32_t first_output = 0;
  int32_t end_output = 0;  // <= width
  int32_t num_rows = 0;
  const int32_t* rows = nullptr;  // [num_rows]
  const float* x = nullptr;       // row r at x + r * x_stride, [hidden_size]
  int64_t x_stride = 0;           // floats, >= PaddedFloats(hidden_size), whole vectors
  float* hidden = nullptr;        // row i at hidden + i * hidden_stride, [width]
  int64_t hidden_stride = 0;      // floats, >= PaddedFloats(width), whole vectors
};

// sum[rows[i]][o] += routing_weights[i] * (down_o hidden[i]), i in [0, num_rows), o in
// [first_output, end_output). A row may occur once. Without `add` as if the sums were zero before.
struct DownArgs {
  const ExpertWeights* weights = nullptr;
  int32_t width = 0;
  int32_t first_output = 0;
  int32_t end_output = 0;  // <= hidden_size
  int32_t num_rows = 0;
  const int32_t* rows = nullptr;           // [num_rows]
  const float* routing_weights = nullptr;  // [num_rows]
  const float* hidden = nullptr;           // as GateUpArgs left it
  int64_t hidden_stride = 0;
  float* sum = nullptr;  // row r at sum + r * sum_stride, [hidden_size]
  int64_t sum_stride = 0;
  bool add = true;
};

// out[o] = 0 + row which[0][o] + row which[1][o] + ..., in that order, o in [0, n). Row w stands at
// rows + w * stride. The rows `next` will probably be summed next: asked for from memory.
struct SumRowsArgs {
  const float* rows = nullptr;
  int64_t stride = 0;  // floats
  const int32_t* which = nullptr;
  int32_t num = 0;
  const int32_t* next = nullptr;
  int32_t num_next = 0;
  int64_t n = 0;
  float* out = nullptr;  // apart from the rows; at any address, as they are
};

struct FfnKernels {
  const char* name;  // of the tier, as --cpu_tier takes it
  int32_t lanes;     // of a chain: rounding grows with k / lanes
  bool fused;        // multiply and add round once
  void (*gate_up)(const GateUpArgs& args);
  void (*down)(const DownArgs& args);
  // silu(x[i]) = x / (1 + exp(-x)), in place. Within 4 units in the last place for x >= -88.7;
  // below, where exp(-x) leaves f32's range, -0 for what is above -3e-37. NaN stays NaN.
  void (*silu)(float* x, int64_t n);
  // `in` at any byte address.
  void (*widen)(const std::byte* in, int64_t n, float* out);
  // Round to nearest even, as ToBF16.
  void (*narrow)(const float* in, int64_t n, BF16* out);
  void (*sum_rows)(const SumRowsArgs& args);
};

extern const FfnKernels kScalarKernels;
#if defined(__x86_64__)
extern const FfnKernels kAvx2Kernels;
extern const FfnKernels kAvx512Kernels;
#endif

}  // namespace banyan::expert
