// The oracle of every kernel test: scalar dequantisation and matrix-vector products in double, in
// index order. Slow on purpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/tensor/dtype.h"

namespace banyan {

// A borrowed matrix as a checkpoint holds it: row-major, any byte alignment, rows
// `row_stride_bytes` apart.
struct ReferenceMatrix {
  const std::byte* data = nullptr;
  DType dtype = DType::kBF16;  // kBF16 or kF32
  int64_t num_rows = 0;
  int64_t num_cols = 0;
  int64_t row_stride_bytes = 0;
};

// num_cols values of row `row`; exact.
std::vector<double> DequantizeRow(const ReferenceMatrix& matrix, int64_t row);

// y = M x, [num_rows]. x: [num_cols].
std::vector<double> ReferenceMatVec(const ReferenceMatrix& matrix, const std::vector<double>& x);

// |M| |x|, [num_rows]: what rounding errors of M x are proportional to.
std::vector<double> ReferenceAbsMatVec(const ReferenceMatrix& matrix, const std::vector<double>& x);

// x / (1 + exp(-x)).
double ReferenceSilu(double x);

}  // namespace banyan
