#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/int8_rows.h"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kMostCode = 127;
static_assert(kGroupColumns == 2 * kWarp);

__device__ __forceinline__ float ValueAt(const float* values, int64_t at) { return values[at]; }
__device__ __forceinline__ float ValueAt(const uint16_t* values, int64_t at) {
  return Bf16ToFloat(values[at]);
}

__device__ __forceinline__ int8_t CodeOf(float value, float scale) {
  const float code = scale > 0 ? rintf(value / scale) : 0.0f;
  return static_cast<int8_t>(fmaxf(-kMostCode, fminf(kMostCode, code)));
}

// A warp per group, two columns a lane.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(const T* values, int64_t num_groups, int32_t cols, int32_t groups_per_row,
                   int8_t* codes, float* scales) {
  const int64_t group = (int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x)) / kWarp;
  if (group >= num_groups) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int32_t column = static_cast<int32_t>(group % groups_per_row) * kGroupColumns + lane;
  const int64_t row_at = group / groups_per_row * cols;
  const int64_t at = row_at + column;
  const float first = column < cols ? ValueAt(values, at) : 0.0f;
  const float second = column + kWarp < cols ? ValueAt(values, at + kWarp) : 0.0f;
  const float scale = WarpMax(fmaxf(fmaxf(0.0f, fabsf(first)), fabsf(second))) / kMostCode;
  if (lane == 0) scales[group] = scale;
  int8_t* const row = codes + row_at;
  if (column < cols) row[CodePlace(cols, column)] = CodeOf(first, scale);
  if (column + kWarp < cols) row[CodePlace(cols, column + kWarp)] = CodeOf(second, scale);
}

__global__ void __launch_bounds__(kThreads) PairKernel(uint2* groups, int64_t num_groups) {
  const int64_t group = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group >= num_groups) return;
  constexpr int kPieces = kGroupColumns / 8;
  uint2* const at = groups + group * kPieces;
  uint2 pieces[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) pieces[i] = at[i];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) at[CodePlace(kGroupColumns, i * 8) / 8] = pieces[i];
}

}  // namespace

cudaError_t QuantizeInt8Rows(const void* values, bool bf16, int64_t num_rows, int32_t cols,
                             int8_t* codes, float* scales, cudaStream_t stream) {
  const int32_t groups_per_row = (cols + kGroupColumns - 1) / kGroupColumns;
  const int64_t num_groups = num_rows * groups_per_row;
  if (num_groups == 0) return cudaSuccess;
  constexpr int64_t kPerCta = kThreads / kWarp;
  const dim3 grid(static_cast<unsigned>((num_groups + kPerCta - 1) / kPerCta));
  if (bf16) {
    LaunchAlone(QuantizeKernel<uint16_t>, grid, kThreads, 0, stream,
                static_cast<const uint16_t*>(values), num_groups, cols, groups_per_row, codes,
                scales);
  } else {
    LaunchAlone(QuantizeKernel<float>, grid, kThreads, 0, stream, static_cast<const float*>(values),
                num_groups, cols, groups_per_row, codes, scales);
  }
  return cudaPeekAtLastError();
}

cudaError_t PairCodes(int8_t* codes, int64_t num_rows, int32_t cols, cudaStream_t stream) {
  const int64_t num_groups = num_rows * cols / kGroupColumns;
  if (num_groups == 0 || !CodesLieInPairs(cols)) return cudaSuccess;
  LaunchAlone(PairKernel, static_cast<unsigned>((num_groups + kThreads - 1) / kThreads), kThreads,
              0, stream, reinterpret_cast<uint2*>(codes), num_groups);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
