// Packing of a matrix into a pool format, and the exact decoding that kernel tests compare with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/quant/pool_format.h"

namespace banyan {

// A borrowed matrix of finite values, row-major, rows row_stride floats apart.
struct FloatMatrix {
  const float* data = nullptr;
  int64_t num_outputs = 0;
  int64_t k = 0;
  int64_t row_stride = 0;
};

// Rounds and packs; `out` has PackedMatrixBytes, 64-byte aligned, all of it is written. The same
// bytes on every machine and CPU. One thread; speed: docs/performance.md.
void PackMatrix(PoolFormat format, const FloatMatrix& matrix, std::byte* out);

// Panels [first_panel, end_panel) of it; `out` is the whole matrix. Quantised formats only.
void PackPanels(PoolFormat format, const FloatMatrix& matrix, int64_t first_panel,
                int64_t end_panel, std::byte* out);

// out[o * k + i]: the weight, exact in f32.
void UnpackMatrix(PoolFormat format, const std::byte* packed, int64_t num_outputs, int64_t k,
                  float* out);

// An NF4 matrix that keeps the codes and scales of a checkpoint: no second rounding.
//   codes   one per weight, [num_outputs][k] row-major, two per byte, the even one in the high half
//   absmax  of each block of 64 consecutive weights, resolved to f32
// kChunkInputs must divide k. `code_offset` in codes: where a slice of a larger matrix begins in a
// row; row_codes: codes per row of that larger matrix, a multiple of 64, as is code_offset.
struct NF4Codes {
  const std::byte* codes = nullptr;
  const float* absmax = nullptr;
  int64_t num_outputs = 0;
  int64_t k = 0;
  int64_t row_codes = 0;
  int64_t code_offset = 0;
};
void PackNF4Codes(const NF4Codes& matrix, std::byte* out);

}  // namespace banyan
