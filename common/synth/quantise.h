// Weights as quantised checkpoints hold them (checkpoint spec 3 to 5): what their libraries' own
// quantisers do, written for the files that are generated. All inputs are finite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/quant/bf16.h"

namespace banyan {

// --- bitsandbytes 4-bit ---

// Flat codes of `w`, two a byte, the even element in the high half, and a scale for each block of
// 64; the last block and the last byte may be half full. `w` begins at a block of its matrix.
//   codes [(n + 1) / 2], absmax [(n + 63) / 64]
void QuantiseNF4(std::span<const float> w, std::byte* codes, float* absmax);

// Scales of blocks in 8 bits: absmax[b] = map[codes[b]] * nested_absmax[b / 256] + offset.
struct NestedScales {
  std::vector<uint8_t> codes;
  std::vector<float> nested_absmax;
  float offset = 0;  // the mean of the scales
};
NestedScales NestScales(std::span<const float> absmax);

// The 256 sorted values of bitsandbytes' signed dynamic map, its nested_quant_map.
std::span<const float, 256> DynamicMap();

// --- LLM.int8 ---

// w = code * scb / 127. Codes [num_rows][num_cols], one scale a row.
void QuantiseInt8Rows(std::span<const float> w, int64_t num_cols, std::byte* codes, float* scb);

// --- FP8 e4m3 ---

// The nearest e4m3 value, ties to even, beyond 448 the largest.
uint8_t ToE4M3(float value);

// Rows [128 or fewer][num_cols] of a matrix: codes, and of each 128 columns the scale, a
// weight_scale_inv: w = code * scale. Scales are rounded to bf16 before they are used.
void QuantiseFP8Rows(std::span<const float> w, int64_t num_cols, std::byte* codes, BF16* scales);

inline constexpr int64_t kFP8Block = 128;

}  // namespace banyan
