#include "common/quant/reference.h"

#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/bf16.h"

namespace banyan {

std::vector<double> DequantizeRow(const ReferenceMatrix& matrix, int64_t row) {
  CHECK(row >= 0 && row < matrix.num_rows);
  CHECK(matrix.dtype == DType::kBF16 || matrix.dtype == DType::kF32);
  const size_t size = DTypeSizeBytes(matrix.dtype);
  const std::byte* p = matrix.data + row * matrix.row_stride_bytes;
  std::vector<double> out;
  out.reserve(static_cast<size_t>(matrix.num_cols));
  for (int64_t i = 0; i < matrix.num_cols; ++i, p += size) {
    if (matrix.dtype == DType::kBF16) {
      BF16 value;
      std::memcpy(&value, p, size);
      out.push_back(ToFloat(value));
    } else {
      float value;
      std::memcpy(&value, p, size);
      out.push_back(value);
    }
  }
  return out;
}

std::vector<double> ReferenceMatVec(const ReferenceMatrix& matrix, const std::vector<double>& x) {
  CHECK(static_cast<int64_t>(x.size()) == matrix.num_cols);
  std::vector<double> out(static_cast<size_t>(matrix.num_rows));
  for (size_t row = 0; row < out.size(); ++row) {
    const std::vector<double> w = DequantizeRow(matrix, static_cast<int64_t>(row));
    for (size_t i = 0; i < x.size(); ++i) out[row] += w[i] * x[i];
  }
  return out;
}

std::vector<double> ReferenceAbsMatVec(const ReferenceMatrix& matrix,
                                       const std::vector<double>& x) {
  CHECK(static_cast<int64_t>(x.size()) == matrix.num_cols);
  std::vector<double> out(static_cast<size_t>(matrix.num_rows));
  for (size_t row = 0; row < out.size(); ++row) {
    const std::vector<double> w = DequantizeRow(matrix, static_cast<int64_t>(row));
    for (size_t i = 0; i < x.size(); ++i) out[row] += std::abs(w[i] * x[i]);
  }
  return out;
}

double ReferenceSilu(double x) { return x / (1.0 + std::exp(-x)); }

}  // namespace banyan
