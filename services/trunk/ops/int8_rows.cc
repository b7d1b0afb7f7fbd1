#include "services/trunk/ops/int8_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/quant/bf16.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {
namespace {

constexpr float kMostCode = 127;

float ValueAt(const TensorView& view, int64_t at) {
  if (view.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, view.data + at * 4, sizeof(value));
    return value;
  }
  BF16 value;
  std::memcpy(&value, view.data + at * 2, sizeof(value));
  return ToFloat(value);
}

}  // namespace

void QuantizeInt8Rows(const TensorView& view, int64_t begin, int64_t end, int8_t* codes,
                      float* scales) {
  const int64_t cols = view.shape.dim(1);
  const int64_t groups = Int8Groups(static_cast<int32_t>(cols));
  float values[kInt8GroupColumns];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = row * cols + group * kInt8GroupColumns;
      const int64_t count = std::min<int64_t>(kInt8GroupColumns, cols - group * kInt8GroupColumns);
      float most = 0;
      for (int64_t i = 0; i < count; ++i) {
        values[i] = ValueAt(view, first + i);
        most = std::fmax(most, std::fabs(values[i]));
      }
      const float scale = most / kMostCode;
      scales[row * groups + group] = scale;
      for (int64_t i = 0; i < count; ++i) {
        const float code = scale > 0 ? std::nearbyint(values[i] / scale) : 0.0f;
        // fmin and fmax prefer a number to none.
        codes[first + i] = static_cast<int8_t>(std::fmax(-kMostCode, std::fmin(kMostCode, code)));
      }
    }
  }
}

}  // namespace banyan::trunk
