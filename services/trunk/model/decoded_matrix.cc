#include "services/trunk/model/decoded_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/parallel/first_error.h"
#include "common/quant/bf16.h"

namespace banyan::trunk {
namespace {

constexpr int64_t kWeightsAtOnce = 1 << 15;  // decoded in a cache
constexpr int64_t kWeightsPerTile = 1 << 19;

}  // namespace

absl::Status DecodeRows(const Checkpoint& checkpoint, const MatrixDecoder& decoder, int64_t first,
                        int64_t rows, DecodeBuffers& buffers, std::byte* out) {
  const StoredMatrix& stored = decoder.matrix();
  const DType dtype = ResidentDType(decoder.dtype());
  const auto size = static_cast<int64_t>(DTypeSizeBytes(dtype));
  const int64_t at_once = std::max<int64_t>(1, kWeightsAtOnce / stored.cols);
  const std::span<const std::byte> all = decoder.RowBytes(first, rows);
  buffers.raw.resize(all.size());
  RETURN_IF_ERROR(checkpoint.Read(all, buffers.raw));
  for (int64_t row = first; row < first + rows; row += at_once) {
    const int64_t some = std::min(at_once, first + rows - row);
    buffers.values.resize(static_cast<size_t>(some * stored.cols));
    const std::vector<float>& values = buffers.values;
    const std::byte* const raw =
        buffers.raw.data() + (decoder.RowBytes(row, some).data() - all.data());
    decoder.DecodeRows(row, some, raw, buffers.values.data());
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isfinite(values[i])) continue;
      const auto at = static_cast<int64_t>(i);
      return DataLossF("{}[{}, {}] is {}, expected a finite number ({})", stored.name,
                       row + at / stored.cols, at % stored.cols, values[i],
                       checkpoint.FileOf(*stored.entry));
    }
    std::byte* const to = out + (row - first) * stored.cols * size;
    if (dtype == DType::kF32) {
      std::memcpy(to, values.data(), values.size() * sizeof(float));
      continue;
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const BF16 value = ToBF16(values[i]);
      std::memcpy(to + i * sizeof(value), &value, sizeof(value));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DecodedMatrix> DecodeMatrix(const Checkpoint& checkpoint, StoredMatrix matrix,
                                           WorkerPool* pool) {
  ASSIGN_OR_RETURN(const MatrixDecoder decoder,
                   MatrixDecoder::Create(checkpoint, std::move(matrix)));
  const StoredMatrix& stored = decoder.matrix();
  const DType dtype = ResidentDType(decoder.dtype());
  const int64_t row_bytes = stored.cols * static_cast<int64_t>(DTypeSizeBytes(dtype));
  DecodedMatrix out;
  out.bytes.reset(new std::byte[static_cast<size_t>(stored.rows * row_bytes)]);
  out.view = {dtype, Shape{stored.rows, stored.cols}, out.bytes.get()};
  const int64_t tile_rows = std::max<int64_t>(1, kWeightsPerTile / stored.cols);
  const int64_t num_tiles = (stored.rows + tile_rows - 1) / tile_rows;
  std::vector<DecodeBuffers> buffers(
      static_cast<size_t>(pool == nullptr ? 1 : pool->num_threads()));
  FirstError error;
  const auto decode = [&](int64_t tile, int thread) {
    if (error.failed()) return;
    const int64_t first = tile * tile_rows;
    const absl::Status status =
        DecodeRows(checkpoint, decoder, first, std::min(tile_rows, stored.rows - first),
                   buffers[static_cast<size_t>(thread)], out.bytes.get() + first * row_bytes);
    if (!status.ok()) error.Set(status);
  };
  if (pool != nullptr) {
    pool->ParallelFor(num_tiles, decode);
  } else {
    for (int64_t tile = 0; tile < num_tiles; ++tile) decode(tile, 0);
  }
  RETURN_IF_ERROR(error.Get());
  return out;
}

}  // namespace banyan::trunk
