// Contract of the kernels for packed matrices (common/quant/pool_format.h): the same gated FFN as
// expert_ffn.h, in the same two halves, with activations prepared once per row.
//
// Activations. A row of k floats is prepared into row_bytes(k) bytes whose layout only the table
// that prepared it knows. Precision kExact serves callers that send f32: integer formats hold a row
// as 16-bit numbers with one f32 scale per 32, in two planes of 8 bits where the instructions want
// that, so that an activation is off by 2^-16 of the largest in its group; bf16 and nf4 keep f32,
// or in the tiers with bf16 products the sum of two bf16, off by 2^-18 of the value.
// kFast serves callers that send bf16: integer formats hold 8-bit numbers with one f32 scale per
// 32, the others bf16. The hidden row between the halves is prepared in the same way.
//
// Order of arithmetic. The dot product of a (row, output) is one chain over the chunks or groups
// along k, ascending; so the bits of a row do not depend on the other rows of a call, on how
// panels are cut into calls, nor on threads. Integer formats: integer sums within a group, then
// acc = fma(float(sum), scale_w * scale_x, acc) for each group, k ascending, in every tier: all
// tiers give the same bits. Others: as the tier's file says.
//
// A NaN or an infinity in a row makes all of that row's outputs NaN in the integer formats, and
// touches no other row.
//
// Thread-safe: no state. No errors: the caller checks sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu/cpu_features.h"
#include "common/quant/pool_format.h"

namespace banyan::expert {

enum class Precision : uint8_t { kExact, kFast };

// One expert's slice; each matrix is 64-byte aligned.
struct PackedExpert {
  const std::byte* gate_proj = nullptr;  // [width, hidden_size]
  const std::byte* up_proj = nullptr;    // [width, hidden_size]
  const std::byte* down_proj = nullptr;  // [hidden_size, width]
};

// Panels of gate and up are cut into calls at multiples of this, so that a call makes whole chunks
// of the hidden row.
inline constexpr int32_t kGateUpPanels = kChunkInputs / kPanelOutputs;

// The largest hidden_size and width: scratch holds decoded panels of bf16 and nf4.
inline constexpr int64_t kMaxPackedInputs = 8192;

// Rows that share a pass over the weights, at most; a call may have more.
inline constexpr int32_t kMaxPassRows = 64;

// hidden row i = prepared(silu(gate x[rows[i]]) * (up x[rows[i]])), the chunks of panels
// [first_panel, end_panel); end_panel a multiple of kGateUpPanels or the last one. How hidden rows
// lie among each other only the table knows: down takes what calls of as many rows made.
struct PackedGateUpArgs {
  const PackedExpert* weights = nullptr;
  int32_t hidden_size = 0;
  int32_t width = 0;
  int32_t first_panel = 0;
  int32_t end_panel = 0;  // <= NumPanels(width)
  int32_t num_rows = 0;
  const int32_t* rows = nullptr;  // [num_rows]
  const std::byte* x = nullptr;   // prepared row r at x + r * x_stride
  int64_t x_stride = 0;           // bytes, a multiple of 64, >= row_bytes(hidden_size)
  std::byte* hidden = nullptr;    // hidden_rows(num_rows) * hidden_stride bytes, 64-byte aligned
  int64_t hidden_stride = 0;      // bytes, a multiple of 64, >= row_bytes(width)
  std::byte* scratch = nullptr;   // scratch_bytes of the table, 64-byte aligned, of this thread
  // What this thread will probably run next: panels of `next` from next_panel on, or null. Asked
  // for from memory while this call ends; changes no result.
  const PackedExpert* next = nullptr;
  int32_t next_panel = 0;
  // The rows that will go with it, where they are others than these; they come from a cache that
  // is shared, or from another core's.
  const int32_t* next_rows = nullptr;
  int32_t num_next_rows = 0;
};

// sum[rows[i]][o] += routing_weights[i] * (down_o hidden[i]) for the outputs of panels
// [first_panel, end_panel). A row may occur once. Product and sum round separately. Without `add`
// as if the sums were zero before.
struct PackedDownArgs {
  const PackedExpert* weights = nullptr;
  int32_t hidden_size = 0;
  int32_t width = 0;
  int32_t first_panel = 0;
  int32_t end_panel = 0;  // <= NumPanels(hidden_size)
  int32_t num_rows = 0;
  const int32_t* rows = nullptr;           // [num_rows]
  const float* routing_weights = nullptr;  // [num_rows]
  const std::byte* hidden = nullptr;
  int64_t hidden_stride = 0;
  float* sum = nullptr;    // row r at sum + r * sum_stride, [hidden_size], 64-byte aligned rows are
  int64_t sum_stride = 0;  // not required
  bool add = true;
  std::byte* scratch = nullptr;
  const PackedExpert* next = nullptr;  // as in PackedGateUpArgs
  int32_t next_panel = 0;
  const std::byte* next_hidden = nullptr;
  int32_t num_next_rows = 0;
};

inline int32_t SameNumber(int32_t num_rows) { return num_rows; }

struct PackedKernels {
  const char* tier = nullptr;  // as --cpu_tier takes it
  PoolFormat format = PoolFormat::kInt8;
  Precision precision = Precision::kExact;
  int64_t scratch_bytes = 0;                  // of each thread, at most 1 MiB
  int64_t (*row_bytes)(int64_t k) = nullptr;  // a multiple of 64
  // Places that the hidden rows of a call of num_rows rows take, num_rows or more.
  int32_t (*hidden_rows)(int32_t num_rows) = SameNumber;
  // From f32, any alignment. Writes all row_bytes(k) bytes; inputs beyond k count as zero.
  void (*prepare)(const float* x, int64_t k, std::byte* out) = nullptr;
  void (*gate_up)(const PackedGateUpArgs& args) = nullptr;
  void (*down)(const PackedDownArgs& args) = nullptr;
  // Called once by each thread before its first kernel (AMX tile configuration, say); may be null.
  void (*enter_thread)() = nullptr;
};

// The kernels of `tier` (scalar, avx2, avx512, avx512_vnni, amx; the fastest of those that
// `features` allows and that exists at or below it for this format), or nullptr where the format
// has none.
const PackedKernels* FindPackedKernels(PoolFormat format, Precision precision, const char* tier,
                                       const CpuFeatures& features);

}  // namespace banyan::expert
