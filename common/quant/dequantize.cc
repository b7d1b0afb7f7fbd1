#include "common/quant/dequantize.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/f16.h"
#include "common/quant/f8_e4m3.h"

namespace banyan {
namespace {

// bitsandbytes multiplies by this instead of dividing by 127.
constexpr float kInverse127 = 7.874015718698502e-3f;

void RoundAll(DType dtype, std::span<float> values) {
  if (dtype == DType::kF32) return;
  if (dtype == DType::kBF16) {
    for (float& value : values) value = ToFloat(ToBF16(value));
  } else {
    for (float& value : values) value = RoundTo(dtype, value);
  }
}

}  // namespace

float RoundTo(DType dtype, float value) {
  switch (dtype) {
    case DType::kF32:
      return value;
    case DType::kBF16:
      return ToFloat(ToBF16(value));
    case DType::kF16:
      return ToFloat(ToF16(value));
    default:
      CHECK(false);
      return value;
  }
}

void DequantizeBnb4(const Bnb4Codes& matrix, int64_t first, int64_t count, float* out) {
  CHECK(matrix.block_size >= 2 && matrix.block_size % 2 == 0);
  CHECK(matrix.first_code % 2 == 0 && first >= matrix.first_code);
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t block = at / matrix.block_size;
    const int64_t stop = std::min(end, (block + 1) * matrix.block_size);
    float values[16];  // of the block's scale
    for (int i = 0; i < 16; ++i) {
      values[i] = RoundTo(matrix.dtype, matrix.table[i] * matrix.absmax[block]);
    }
    const auto pair_of = [&](int64_t i) {
      return static_cast<uint8_t>(matrix.codes[(i - matrix.first_code) / 2]);
    };
    if (at % 2 != 0) *out++ = values[pair_of(at++) & 0x0f];
    for (; at + 1 < stop; at += 2, out += 2) {
      const uint8_t pair = pair_of(at);
      out[0] = values[pair >> 4];
      out[1] = values[pair & 0x0f];
    }
    if (at < stop) *out++ = values[pair_of(at++) >> 4];
  }
}

void DequantizeAbsmax(std::span<const uint8_t> codes, const float* map, const float* nested_absmax,
                      int64_t nested_block, float offset, float* out) {
  for (size_t i = 0; i < codes.size(); ++i) {
    out[i] = map[codes[i]] * nested_absmax[static_cast<int64_t>(i) / nested_block] + offset;
  }
}

void DequantizeInt8Row(const std::byte* row, float scb, DType dtype, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<float>(static_cast<int8_t>(row[i])) * scb * kInverse127;
  }
  RoundAll(dtype, out);
}

void DequantizeF8Row(const std::byte* row, const float* scales, int64_t block_cols, DType dtype,
                     std::span<float> out) {
  const auto cols = static_cast<int64_t>(out.size());
  for (int64_t first = 0; first < cols; first += block_cols, ++scales) {
    const float scale = *scales;
    const int64_t end = std::min(cols, first + block_cols);
    for (int64_t i = first; i < end; ++i) {
      out[static_cast<size_t>(i)] = kF8E4M3Table[static_cast<uint8_t>(row[i])] * scale;
    }
  }
  RoundAll(dtype, out);
}

}  // namespace banyan
