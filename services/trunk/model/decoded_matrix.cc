#include "services/trunk/model/decoded_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/quant/bf16.h"

namespace banyan::trunk {
namespace {

constexpr int64_t kRowsAtOnce = 16;

}  // namespace

absl::StatusOr<DecodedMatrix> DecodeMatrix(const Checkpoint& checkpoint, StoredMatrix matrix) {
  ASSIGN_OR_RETURN(const MatrixDecoder decoder,
                   MatrixDecoder::Create(checkpoint, std::move(matrix)));
  const StoredMatrix& stored = decoder.matrix();
  const DType dtype = ResidentDType(decoder.dtype());
  const auto size = static_cast<int64_t>(DTypeSizeBytes(dtype));
  DecodedMatrix out;
  out.bytes.reset(new std::byte[static_cast<size_t>(stored.rows * stored.cols * size)]);
  out.view = {dtype, Shape{stored.rows, stored.cols}, out.bytes.get()};
  std::vector<std::byte> raw;
  std::vector<float> values;
  for (int64_t first = 0; first < stored.rows; first += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, stored.rows - first);
    const std::span<const std::byte> bytes = decoder.RowBytes(first, rows);
    raw.resize(bytes.size());
    values.resize(static_cast<size_t>(rows * stored.cols));
    RETURN_IF_ERROR(checkpoint.Read(bytes, raw));
    decoder.DecodeRows(first, rows, raw.data(), values.data());
    std::byte* const to = out.bytes.get() + first * stored.cols * size;
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) {
        const auto at = static_cast<int64_t>(i);
        return DataLossF("{}[{}, {}] is {}, expected a finite number ({})", stored.name,
                         first + at / stored.cols, at % stored.cols, values[i],
                         checkpoint.FileOf(*stored.entry));
      }
      if (dtype == DType::kBF16) {
        const BF16 value = ToBF16(values[i]);
        std::memcpy(to + i * sizeof(value), &value, sizeof(value));
      }
    }
    if (dtype == DType::kF32) std::memcpy(to, values.data(), values.size() * sizeof(float));
  }
  return out;
}

}  // namespace banyan::trunk
