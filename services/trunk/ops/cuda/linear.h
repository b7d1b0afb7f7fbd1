// y[r, n] = sum over k of x[r, k] * w[n, k] for up to eight matrices over the same rows.
//
// bf16 matrices of a multiple of 32 columns go through the tensor cores: x is split in kTerms bf16,
// products with w are exact and summed in f32. Few rows are split by the warps that multiply them,
// many ahead, into LinearTuning::split. The columns are cut in sixteen partitions, each summed in
// one order and then joined in order, whether a partition is a warp of its own (few rows) or a
// stretch of a longer loop (many): so a row's bits depend neither on the rows beside it nor on
// their number. Error: kSplitLoss of the sum of magnitudes, and the rounding of the sums. Codes of
// 8 bits are bf16 numbers as they are, if they make whole groups; each group is summed from zero
// and then scaled. Other matrices are computed in plain f32, one warp per output.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int kMaxMatrices = 8;
inline constexpr int32_t kGroupColumns = 64;  // that share a scale

// bf16 terms that x is the sum of: 16 bits of mantissa. One, bf16 alone, is for measurements.
// docs/adr/two-terms-on-gpus.md
inline constexpr int kTerms = 2;
static_assert(kTerms == 1 || kTerms == 2);
// Of x at the most, relative: half a unit of the last term's eight bits.
inline constexpr double kSplitLoss = kTerms == 1 ? 0x1p-9 : 0x1p-18;

// Where a code of a row of so many columns lies in it. Of whole groups: eight columns beside the
// eight that are 32 further, so that a lane reads its part of both blocks at once.
constexpr bool CodesLieInPairs(int32_t cols) { return cols % kGroupColumns == 0; }
constexpr int32_t CodePlace(int32_t cols, int32_t column) {
  if (!CodesLieInPairs(cols)) return column;
  const int32_t piece = column / 8 % 8;
  return column / kGroupColumns * kGroupColumns + (piece % 4 * 2 + piece / 4) * 8 + column % 8;
}

enum class WeightKind : int32_t { kF32, kBf16, kInt8 };

struct LinearMatrix {
  const float* x = nullptr;       // [num_rows, k], 16-byte aligned
  const float* up = nullptr;      // the same: then silu(x) * up takes the place of x
  const void* w = nullptr;        // [n, k], 16-byte aligned; codes as CodePlace says
  const float* scales = nullptr;  // kInt8: [n, ceil(k / kGroupColumns)]
  float* y = nullptr;             // [num_rows, n]
  int32_t n = 0;
  int32_t k = 0;
  WeightKind kind = WeightKind::kF32;
};

// Never takes part in a row's bits: only in how work is cut.
struct LinearTuning {
  int32_t num_sms = 132;
  int32_t shared_bytes = 227 << 10;  // that a CTA may have
  bool clusters = false;             // the device has clusters of CTAs
  bool hopper = false;               // linear_hopper.h: there, and the device is one
  // Where x is split ahead: 2 kTerms bytes for each value, rows in groups of 128, 16-byte aligned,
  // one call's at a time. A call that it is too small for is computed as one of few rows is.
  void* split = nullptr;
  int64_t split_bytes = 0;
};

// Whether Linear takes a matrix with `up` for so many rows.
bool TakesSwiglu(const LinearMatrix& matrix, int32_t num_rows, const LinearTuning& tuning);

cudaError_t Linear(const LinearMatrix* matrices, int num_matrices, int32_t num_rows,
                   const LinearTuning& tuning, cudaStream_t stream);

// Raises the limits on shared memory that the kernels need; once per device, before the first
// launch. cudaErrorNoKernelImageForDevice, cudaErrorInvalidValue: the device is not one we support.
cudaError_t PrepareLinear();

}  // namespace banyan::trunk::cuda
