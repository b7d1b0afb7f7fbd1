// 8-bit codes of a matrix: groups of kInt8GroupColumns columns of a row share one f32 scale. An
// element is code * scale; scale = max |w| of the group / 127, code = w / scale rounded to even.
// Error: at most half a scale. The CUDA backend computes the same codes and scales.
#pragma once

#include <cstdint>

#include "common/tensor/tensor_view.h"

namespace banyan::trunk {

// Rows [begin, end) of `view`, [rows, cols] of bf16 or f32 at any alignment, into those of
//   codes [rows, cols]   scales [rows, Int8Groups(cols)]
// A group with a value that is no number gets codes all the same, whose products are none either
// or infinite.
void QuantizeInt8Rows(const TensorView& view, int64_t begin, int64_t end, int8_t* codes,
                      float* scales);

}  // namespace banyan::trunk
