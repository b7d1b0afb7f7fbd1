#include "services/trunk/model/sliced_tensor.h"

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "common/plan/trunk_format.h"

namespace banyan::trunk {

SlicedTensor SliceTensor(const TensorView& tensor, const TensorSlice& slice, bool copy) {
  const int64_t num_rows = tensor.shape.dim(0);
  const auto size = static_cast<int64_t>(DTypeSizeBytes(tensor.dtype));
  const int64_t row_bytes = num_rows == 0 ? 0 : tensor.shape.num_elements() / num_rows * size;
  const auto part_bytes = static_cast<size_t>(slice.cols.size() * size);
  // Dimensions beyond the second are never cut.
  std::vector<int64_t> dims = tensor.shape.dims();
  dims[0] = slice.num_rows();
  if (dims.size() == 2) dims[1] = slice.cols.size();
  SlicedTensor out;
  out.view = {tensor.dtype, Shape(std::move(dims)), nullptr};
  if (!copy && slice.IsContiguous(tensor.shape)) {
    out.view.data = tensor.data + slice.rows[0].begin * row_bytes;
    return out;
  }
  out.bytes.reset(new std::byte[out.view.size_bytes()]);
  out.view.data = out.bytes.get();
  std::byte* to = out.bytes.get();
  for (const IndexRange& range : slice.rows) {
    for (int64_t row = range.begin; row < range.end; ++row, to += part_bytes) {
      std::memcpy(to, tensor.data + row * row_bytes + slice.cols.begin * size, part_bytes);
    }
  }
  return out;
}

std::optional<SlicedCodes> SliceCodes(const TrunkPack::Matrix& matrix, const TensorSlice& slice) {
  const IndexRange& cols = slice.cols;
  const IndexRange groups = {cols.begin / kTrunkPackGroupColumns,
                             Int8Groups(static_cast<int32_t>(cols.end))};
  if (cols.begin % kTrunkPackGroupColumns != 0 && groups.size() > 1) return std::nullopt;
  const int64_t row_groups = Int8Groups(static_cast<int32_t>(matrix.values.shape.dim(1)));
  const TensorView scales = {DType::kF32, Shape{matrix.values.shape.dim(0), row_groups},
                             reinterpret_cast<const std::byte*>(matrix.scales)};
  return SlicedCodes{SliceTensor(matrix.values, slice),
                     SliceTensor(scales, {.rows = slice.rows, .cols = groups})};
}

}  // namespace banyan::trunk
