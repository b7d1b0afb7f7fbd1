// Decoding of the quantised matrices that checkpoints hold, to exactly the values that the
// libraries which wrote them dequantise to. Sources: checkpoint spec 3 to 5; bitsandbytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/tensor/dtype.h"

namespace banyan {

// `value` as an element of `dtype` (kF32, kBF16 or kF16) and back: round to nearest even.
float RoundTo(DType dtype, float value);

// bitsandbytes 4-bit: codes of a matrix taken as one row, two in a byte, the even one in the high
// half; blocks of `block_size` codes (even) share a scale. The table has 16 entries.
struct Bnb4Codes {
  const std::byte* codes = nullptr;  // from code first_code on, which is even; any alignment
  int64_t first_code = 0;
  const float* table = nullptr;
  const float* absmax = nullptr;  // from that of code 0 on
  int64_t block_size = 64;
  DType dtype = DType::kBF16;  // what values are rounded to: kBF16, kF16 or kF32
};

// Codes [first, first + count) to out: round(table[code] * absmax[block]), f32 products.
void DequantizeBnb4(const Bnb4Codes& matrix, int64_t first, int64_t count, float* out);

// Double quantisation: absmax[i] = map[codes[i]] * nested_absmax[i / nested_block] + offset, each
// operation rounded to f32. `map` has 256 entries.
void DequantizeAbsmax(std::span<const uint8_t> codes, const float* map, const float* nested_absmax,
                      int64_t nested_block, float offset, float* out);

// bitsandbytes LLM.int8, one row: q * scb (the row's largest magnitude) * f32(1 / 127), in this
// order, in f32, then rounded to dtype.
void DequantizeInt8Row(const std::byte* row, float scb, DType dtype, std::span<float> out);

// FP8 e4m3, one row of which every `block_cols` columns share a scale: value * scale in f32, then
// rounded to dtype.
void DequantizeF8Row(const std::byte* row, const float* scales, int64_t block_cols, DType dtype,
                     std::span<float> out);

}  // namespace banyan
