// LinearTile with AMX-BF16 tiles: y[r, n] = sum over k of x[r, k] * w[n, k].
//
// x is split in two bf16 terms, so that products with weights of bf16, or with codes of 8 bits, are
// exact: an error of 2^-18 of x. A tile of weights has 16 outputs x 32 columns, in place where it
// stands whole and few rows pass; a tile of rows 8 rows, two terms each, in pairs of columns.
//
// Order of arithmetic of a (row, output): columns in chunks of kChunkColumns that are added up in
// order. In a chunk each term has a sum of the even and one of the odd steps of 32 columns, each
// step as TDPBF16PS adds it; even and odd are added, then the terms. With codes that is done for
// each 64 columns, and scaled. Neither the rows beside a row nor the way outputs are cut change it.
//
// Tiles: the instructions (common/cpu/amx_tiles.h), or a model in a test.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/cpu/amx_tiles.h"
#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::trunk::cpu {

#include "common/cpu/transpose_avx512-inl.h"

template <class Tiles>
class AmxLinear {
 public:
  static void Bf16(const LinearTile& t) { Run<false>(t); }
  static void Codes(const LinearTile& t) { Run<true>(t); }

 private:
  static constexpr int64_t kOutputs = 16;
  static constexpr int64_t kStepColumns = 32;
  static constexpr int64_t kTileRows = 8;
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int64_t kChunkColumns = 2048;
  static constexpr int64_t kChunkSteps = kChunkColumns / kStepColumns;
  // Of rows that are arranged at once.
  static constexpr int64_t kBlockRows = 64;
  static constexpr int64_t kRowsBytes = kBlockRows / kTileRows * kChunkSteps * kTileBytes;
  static_assert(kRowsBytes + kChunkSteps * kTileBytes <= kLinearScratchBytes);
  // Up to so many tiles of rows read weights where they are. For more these are brought together:
  // rows of a matrix are often a multiple of 4 KiB apart, which is one set of the first level.
  static constexpr int64_t kMostTilesInPlace = 2;
  static constexpr int64_t kAheadSteps = 8;

  // Tile registers: sums of even and odd steps of two tiles of rows, weights, rows.
  static constexpr int kC = 0;
  static constexpr int kA = 4;
  static constexpr int kB = 6;

  // A chunk of a panel of 16 outputs.
  struct Weights {
    const std::byte* data;
    int64_t output_bytes;  // from an output to the next
    int64_t step_bytes;
    bool in_place;
    const std::byte* At(int64_t step) const { return data + step * step_bytes; }
  };

  static std::byte* RowsOf(const LinearTile& t) { return t.scratch; }
  static std::byte* WeightsOf(const LinearTile& t) { return t.scratch + kRowsBytes; }

  // Columns of a tile of rows: two for each.
  static int64_t ColumnsOf(int64_t num_rows) { return num_rows <= 2 ? 4 : 2 * kTileRows; }
  static int64_t RowTileBytes(int64_t columns) { return 16 * 4 * columns; }

  template <bool kCodes>
  static void Run(const LinearTile& t) {
    const int64_t columns = ColumnsOf(t.num_rows);
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = 16;
      config.row_bytes[tile] = static_cast<uint16_t>(tile >= kA && tile < kB ? 64 : 4 * columns);
    }
    Tiles::Configure(config);
    for (int64_t column = 0; column < t.k; column += kChunkColumns) {
      const int64_t width = t.k - column < kChunkColumns ? t.k - column : kChunkColumns;
      for (int64_t row = 0; row < t.num_rows; row += kBlockRows) {
        const int64_t rows = t.num_rows - row < kBlockRows ? t.num_rows - row : kBlockRows;
        ArrangeRows(t, row, rows, column, width, columns);
        for (int64_t n = t.begin; n < t.end; n += kOutputs) {
          const int64_t outputs = t.end - n < kOutputs ? t.end - n : kOutputs;
          const int64_t tiles = (2 * rows + columns - 1) / columns;
          const Weights w = WeightsAt<kCodes>(t, n, outputs, column, width, tiles);
          for (int64_t tile = 0; tile < tiles;) {
            if constexpr (kCodes) {
              Scaled(t, w, n, outputs, column, width, columns, row, rows, tile);
              tile += 1;
            } else {
              const bool two = tile + 1 < tiles;
              Whole(t, w, n, outputs, column, width, columns, row, rows, tile, two);
              tile += two ? 2 : 1;
            }
          }
        }
      }
    }
    Tiles::Release();
  }

  // Rows [first, first + rows) of a chunk of columns, in tiles [16 pairs of columns][columns][2].
  static void ArrangeRows(const LinearTile& t, int64_t first, int64_t rows, int64_t column,
                          int64_t width, int64_t columns) {
    const int64_t steps = StepsOf(width);
    const int64_t tile_rows = columns / 2;
    std::byte* out = RowsOf(t);
    for (int64_t row = 0; row < rows; row += tile_rows) {
      for (int64_t step = 0; step < steps; ++step, out += RowTileBytes(columns)) {
        const int64_t left = width - step * kStepColumns;
        __m512i terms[16];
        for (__m512i& term : terms) term = _mm512_setzero_si512();
        for (int64_t r = 0; r < tile_rows && row + r < rows; ++r) {
          const float* x = t.x + (first + row + r) * t.ldx + column + step * kStepColumns;
          Split(_mm512_maskz_loadu_ps(Lanes(left), x),
                left > 16 ? _mm512_maskz_loadu_ps(Lanes(left - 16), x + 16) : _mm512_setzero_ps(),
                &terms[2 * r], &terms[2 * r + 1]);
        }
        Transpose16(terms);
        for (int64_t pair = 0; pair < 16; ++pair) {
          _mm512_mask_storeu_epi32(out + pair * 4 * columns, Lanes(columns), terms[pair]);
        }
      }
    }
  }

  static int64_t StepsOf(int64_t width) { return (width + kStepColumns - 1) / kStepColumns; }
  static __mmask16 Lanes(int64_t count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff)
                       : static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
  }

  // 32 values as two terms of bf16.
  static void Split(__m512 a, __m512 b, __m512i* large, __m512i* small) {
    const __m512i packed = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    *large = packed;
    *small = (__m512i)_mm512_cvtne2ps_pbh(Rest(b, _mm512_extracti64x4_epi64(packed, 1)),
                                          Rest(a, _mm512_castsi512_si256(packed)));
  }
  // x less its larger term; nothing of what is no number or has no end.
  static __m512 Rest(__m512 x, __m256i large) {
    const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(large), 16));
    const __m512 rest = _mm512_sub_ps(x, value);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest);
  }

  template <bool kCodes>
  static Weights WeightsAt(const LinearTile& t, int64_t n, int64_t outputs, int64_t column,
                           int64_t width, int64_t tiles) {
    constexpr int64_t kBytes = kCodes ? 1 : 2;
    const std::byte* const first = t.w + (n * t.k + column) * kBytes;
    if (!kCodes && outputs == kOutputs && width % kStepColumns == 0 && tiles <= kMostTilesInPlace) {
      return {first, t.k * kBytes, kStepColumns * kBytes, true};
    }
    std::byte* const made = WeightsOf(t);
    const int64_t steps = StepsOf(width);
    for (int64_t o = 0; o < kOutputs; ++o) {
      for (int64_t step = 0; step < steps; ++step) {
        std::byte* const to = made + step * kTileBytes + o * 64;
        const int64_t left = width - step * kStepColumns;
        const auto mask = left >= kStepColumns ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
        if (o >= outputs) {
          _mm512_storeu_si512(to, _mm512_setzero_si512());
        } else if constexpr (kCodes) {
          const __m256i codes =
              _mm256_maskz_loadu_epi8(mask, first + o * t.k + step * kStepColumns);
          const __m512 low =
              _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
          const __m512 high =
              _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1)));
          _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        } else {
          _mm512_storeu_si512(
              to, _mm512_maskz_loadu_epi16(mask, first + (o * t.k + step * kStepColumns) * 2));
        }
      }
    }
    return {made, 64, kTileBytes, false};
  }

  static const std::byte* RowTile(const LinearTile& t, int64_t columns, int64_t width, int64_t tile,
                                  int64_t step) {
    return RowsOf(t) + (tile * StepsOf(width) + step) * RowTileBytes(columns);
  }

  // The products of a step: kOdd of one or two tiles of rows.
  template <int kOdd, bool kTwo>
  static inline __attribute__((always_inline)) void Step(const Weights& w, const std::byte* x,
                                                         int64_t row_bytes, int64_t next_tile,
                                                         int64_t step) {
    Tiles::template Load<kA + kOdd>(w.At(step), w.output_bytes);
    Tiles::template Load<kB + kOdd>(x, row_bytes);
    Tiles::template DotBF16<kC + kOdd, kA + kOdd, kB + kOdd>();
    if constexpr (kTwo) {
      Tiles::template Load<kB + kOdd>(x + next_tile, row_bytes);
      Tiles::template DotBF16<kC + 2 + kOdd, kA + kOdd, kB + kOdd>();
    }
  }

  // What comes kAheadSteps later, of this panel or the one behind it.
  static void AskAhead(const Weights& w, int64_t step, int64_t steps, bool last) {
    int64_t at = step + kAheadSteps;
    const std::byte* from = w.data;
    if (at >= steps) {
      if (last) return;
      at -= steps;
      from += kOutputs * w.output_bytes;
    }
    for (int64_t o = 0; o < kOutputs; ++o) {
      __builtin_prefetch(from + o * w.output_bytes + at * w.step_bytes, /*rw=*/0, /*locality=*/1);
    }
  }

  template <bool kTwo>
  static void Chunk(const LinearTile& t, const Weights& w, int64_t columns, int64_t width,
                    int64_t tile, bool last) {
    Tiles::template Zero<kC>();
    Tiles::template Zero<kC + 1>();
    if constexpr (kTwo) {
      Tiles::template Zero<kC + 2>();
      Tiles::template Zero<kC + 3>();
    }
    const int64_t steps = StepsOf(width);
    const int64_t bytes = RowTileBytes(columns);
    const int64_t next_tile = steps * bytes;
    const std::byte* x = RowTile(t, columns, width, tile, 0);
    int64_t step = 0;
    for (; step + 1 < steps; step += 2, x += 2 * bytes) {
      if (w.in_place) {
        AskAhead(w, step, steps, last);
        AskAhead(w, step + 1, steps, last);
      }
      Step<0, kTwo>(w, x, 4 * columns, next_tile, step);
      Step<1, kTwo>(w, x + bytes, 4 * columns, next_tile, step + 1);
    }
    if (step < steps) Step<0, kTwo>(w, x, 4 * columns, next_tile, step);
  }

  // Sums of even and odd steps, [output][columns].
  struct alignas(64) Sums {
    float of[2][kOutputs][16];
  };
  template <int kFirst>
  static void Store(Sums* sums) {
    Tiles::template Store<kFirst>(reinterpret_cast<std::byte*>(sums->of[0]), 64);
    Tiles::template Store<kFirst + 1>(reinterpret_cast<std::byte*>(sums->of[1]), 64);
  }
  static __m512 Both(const Sums& sums, int64_t output, int64_t columns) {
    const __mmask16 lanes = Lanes(columns);
    return _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, sums.of[0][output]),
                         _mm512_maskz_loadu_ps(lanes, sums.of[1][output]));
  }

  // Adds the terms, and puts a tile of rows in its place, or adds it to what chunks before left.
  static void Put(const LinearTile& t, const __m512 (&values)[kOutputs], int64_t n, int64_t outputs,
                  int64_t column, int64_t columns, int64_t row, int64_t rows, int64_t tile) {
    alignas(64) float by_output[kOutputs][kTileRows];
    for (int64_t o = 0; o < kOutputs; ++o) {
      const __m512 sum =
          _mm512_add_ps(values[o], _mm512_permute_ps(values[o], 0xb1));  // lanes 2 r: row r
      _mm256_store_ps(by_output[o], _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, sum)));
    }
    const __m512i index =
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(kTileRows));
    const __mmask16 lanes = Lanes(outputs);
    const int64_t tile_rows = columns / 2;
    for (int64_t r = 0; r < tile_rows && tile * tile_rows + r < rows; ++r) {
      __m512 value = _mm512_i32gather_ps(index, by_output[0] + r, 4);
      float* const y = t.y + (row + tile * tile_rows + r) * t.ldy + n;
      if (column > 0) value = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, y), value);
      _mm512_mask_storeu_ps(y, lanes, value);
    }
  }

  static void Whole(const LinearTile& t, const Weights& w, int64_t n, int64_t outputs,
                    int64_t column, int64_t width, int64_t columns, int64_t row, int64_t rows,
                    int64_t tile, bool two) {
    const bool last = n + 2 * kOutputs > t.end;
    if (two) {
      Chunk<true>(t, w, columns, width, tile, last);
    } else {
      Chunk<false>(t, w, columns, width, tile, last);
    }
    Sums sums;
    const auto put = [&](int64_t which) {
      __m512 values[kOutputs];
      for (int64_t o = 0; o < kOutputs; ++o) values[o] = Both(sums, o, columns);
      Put(t, values, n, outputs, column, columns, row, rows, which);
    };
    Store<kC>(&sums);
    put(tile);
    if (!two) return;
    Store<kC + 2>(&sums);
    put(tile + 1);
  }

  // A group of 64 columns after the other, in two pairs of sums by turns.
  static void Scaled(const LinearTile& t, const Weights& w, int64_t n, int64_t outputs,
                     int64_t column, int64_t width, int64_t columns, int64_t row, int64_t rows,
                     int64_t tile) {
    static_assert(kTileInt8GroupColumns == 2 * kStepColumns);
    const int64_t groups = (t.k + kTileInt8GroupColumns - 1) / kTileInt8GroupColumns;
    const float* scales = t.scales + n * groups + column / kTileInt8GroupColumns;
    __m512 values[kOutputs];
    for (__m512& value : values) value = _mm512_setzero_ps();
    const auto add = [&](const Sums& sums, int64_t group) {
      for (int64_t o = 0; o < outputs; ++o) {
        values[o] = _mm512_fmadd_ps(Both(sums, o, columns),
                                    _mm512_set1_ps(scales[o * groups + group]), values[o]);
      }
    };
    Sums sums[2];
    const int64_t here = (width + kTileInt8GroupColumns - 1) / kTileInt8GroupColumns;
    for (int64_t group = 0; group < here; ++group) {
      if (group % 2 == 0) {
        Group<0>(t, w, columns, width, tile, group, &sums[0]);
      } else {
        Group<2>(t, w, columns, width, tile, group, &sums[1]);
      }
      if (group > 0) add(sums[(group - 1) % 2], group - 1);
    }
    add(sums[(here - 1) % 2], here - 1);
    Put(t, values, n, outputs, column, columns, row, rows, tile);
  }

  template <int kFirst>
  static void Group(const LinearTile& t, const Weights& w, int64_t columns, int64_t width,
                    int64_t tile, int64_t group, Sums* sums) {
    Tiles::template Zero<kC + kFirst>();
    Tiles::template Zero<kC + kFirst + 1>();
    const int64_t step = 2 * group;
    Tiles::template Load<kA>(w.At(step), w.output_bytes);
    Tiles::template Load<kB>(RowTile(t, columns, width, tile, step), 4 * columns);
    Tiles::template DotBF16<kC + kFirst, kA, kB>();
    if (step + 1 < StepsOf(width)) {
      Tiles::template Load<kA + 1>(w.At(step + 1), w.output_bytes);
      Tiles::template Load<kB + 1>(RowTile(t, columns, width, tile, step + 1), 4 * columns);
      Tiles::template DotBF16<kC + kFirst + 1, kA + 1, kB + 1>();
    }
    Store<kC + kFirst>(sums);
  }
};

}  // namespace banyan::trunk::cpu
