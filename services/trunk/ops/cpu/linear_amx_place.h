// What the products with AMX tiles share (linear_amx_kernel.h, linear_amx_codes_kernel.h): a row is
// three columns of a tile, the largest part of its values first, and five rows are a tile.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::trunk::cpu {

#include "common/cpu/transpose_avx512-inl.h"

struct AmxPlace {
  static constexpr int64_t kOutputs = 16;  // of a tile
  static constexpr int64_t kTerms = 3;
  static constexpr int64_t kTileRows = 16 / kTerms;
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int64_t kLineBytes = 64;

  // Columns of a tile of rows: kTerms for each, and one without a use.
  static int64_t ColumnsOf(int64_t num_rows) { return num_rows == 1 ? kTerms + 1 : 16; }

  static int64_t Lesser(int64_t a, int64_t b) { return a < b ? a : b; }
  static __mmask16 Lanes(int64_t count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff)
                       : static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
  }

  // Sums of `rows` rows of a tile, a register for each output from n on: adds the terms of a row,
  // the largest first, and puts it in its place in y, or adds it to what chunks before left there.
  static void Put(const LinearTile& t, __m512i (&sums)[16], int64_t row, int64_t rows, int64_t n,
                  int64_t outputs, bool add) {
    Transpose16(sums);  // a register for each column
    const __mmask16 lanes = Lanes(outputs);
    for (int64_t r = 0; r < rows; ++r) {
      __m512 value = _mm512_castsi512_ps(sums[kTerms * r]);
      for (int64_t i = 1; i < kTerms; ++i) {
        value = _mm512_add_ps(value, _mm512_castsi512_ps(sums[kTerms * r + i]));
      }
      float* const y = t.y + (row + r) * t.ldy + n;
      if (add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, y), value);
      _mm512_mask_storeu_ps(y, lanes, value);
    }
  }
};

}  // namespace banyan::trunk::cpu
