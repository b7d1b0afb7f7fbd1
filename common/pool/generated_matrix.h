// Dummy weights in a quantised pool format, made as codes and scales: no floats are rounded, so a
// pool comes at the speed of memory. They are not the rounded values of GenerateBF16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/quant/pool_format.h"

namespace banyan {

// The part of a matrix of a model that a shard has.
struct MatrixSlice {
  int64_t inputs = 0;        // of the whole matrix
  int64_t first_output = 0;  // a multiple of kPanelOutputs
  int64_t num_outputs = 0;
  int64_t first_input = 0;  // a multiple of PoolFormatGroup
  int64_t num_inputs = 0;
};

// Packs a slice: PackedMatrixBytes bytes at `out`, all written. Every slice, on every machine, has
// the weights of the whole matrix; their mean is about 0 and their standard deviation `deviation`.
//
// With G = PoolFormatGroup and n = ceil(inputs / G), unit p * n + g is group g of panel p: 16
// outputs, G inputs, as they lie in a chunk. Lines (GenerateLines) of unit u: int8 8u..8u+7, codes,
// where 0 becomes 1; nf4 8u..8u+7, codes; int4 5u..5u+3, codes, and of 5u+4 word o has in bit 15
// the sign of output o's scale, which keeps the mean of codes that reach from -8 to 7 at 0. One
// scale a matrix: deviation / (standard deviation of the codes).
//
// Quantised formats only. One thread; speed: docs/performance.md.
void GeneratePackedMatrix(PoolFormat format, uint64_t seed, float deviation,
                          const MatrixSlice& slice, std::byte* out);

}  // namespace banyan
