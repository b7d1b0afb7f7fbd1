// What the products with AMX tiles share (linear_amx_kernel.h, linear_amx_codes_kernel.h): a row is
// three columns of a tile, the largest part of its values first, and five rows are a tile.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/cpu/amx_tiles.h"
#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::trunk::cpu {

#include "common/cpu/lines_ahead-inl.h"
#include "common/cpu/transpose_avx512-inl.h"

struct AmxPlace {
  static constexpr int64_t kOutputs = 16;  // of a tile
  static constexpr int64_t kTerms = 3;
  static constexpr int64_t kTileRows = 16 / kTerms;
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int64_t kLineBytes = 64;  // of a tile: a step of an output's weights
  // Taken at once; chunks are added up in order.
  static constexpr int64_t kChunkColumns = 2048;
  static constexpr int64_t kBlockTiles = 16;
  static constexpr int64_t kBlockRows = kBlockTiles * kTileRows;
  static constexpr int64_t kAheadSteps = 8;

  static int64_t Lesser(int64_t a, int64_t b) { return a < b ? a : b; }
  static __mmask16 Lanes(int64_t count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff)
                       : static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
  }

  // What outputs are passed at once, and the tile registers: weights from a on, rows from b on,
  // sums in others.
  struct Sizes {
    int64_t weight_bytes;
    int64_t outputs;
    int a;
    int b;
    int num_tiles;
  };

  // A chunk of columns of rows that are arranged together, in tiles [16 of 4 bytes][columns] at the
  // begin of the scratch, the steps of a tile of rows one after the other.
  struct Block {
    Block(const LinearTile& tile, const Sizes& sizes, int64_t first_row, int64_t first_column)
        : t(tile),
          row(first_row),
          rows(Lesser(tile.num_rows - first_row, kBlockRows)),
          column(first_column),
          width(Lesser(tile.k - first_column, kChunkColumns)),
          weight_bytes(sizes.weight_bytes),
          output_bytes(tile.k * weight_bytes),
          steps((width * weight_bytes + kLineBytes - 1) / kLineBytes),
          columns(tile.num_rows == 1 ? kTerms + 1 : 16),
          tile_rows(columns / kTerms),
          tiles((rows + tile_rows - 1) / tile_rows),
          rows_bytes(16 * 4 * columns) {}

    std::byte* RowsAt(int64_t tile, int64_t step) const {
      return t.scratch + (tile * steps + step) * rows_bytes;
    }
    const std::byte* WeightsOf(int64_t n) const {
      return t.w + n * output_bytes + column * weight_bytes;
    }
    bool HasWholeSteps() const { return width * weight_bytes % kLineBytes == 0; }

    const LinearTile& t;
    const int64_t row;
    const int64_t rows;
    const int64_t column;
    const int64_t width;
    const int64_t weight_bytes;
    const int64_t output_bytes;  // from an output's weights to the next
    const int64_t steps;
    const int64_t columns;    // of a tile of rows: kTerms for each, and one without a use
    const int64_t tile_rows;  // that it has
    const int64_t tiles;
    const int64_t rows_bytes;  // of a tile of rows
  };

  // For each chunk of columns and, in it, for all rows: kArrange(block), then kPass(block, n) for
  // the outputs from n on.
  template <class Tiles, void (*kArrange)(const Block&), void (*kPass)(const Block&, int64_t)>
  static inline __attribute__((always_inline)) void ForBlocks(const LinearTile& t,
                                                              const Sizes& sizes) {
    TileConfig config;
    const Block like(t, sizes, 0, 0);
    for (int tile = 0; tile < sizes.num_tiles; ++tile) {
      config.rows[tile] = 16;
      config.row_bytes[tile] =
          static_cast<uint16_t>(tile >= sizes.a && tile < sizes.b ? 64 : 4 * like.columns);
    }
    Tiles::Configure(config);
    for (int64_t column = 0; column < t.k; column += kChunkColumns) {
      for (int64_t row = 0; row < t.num_rows; row += kBlockRows) {
        const Block block(t, sizes, row, column);
        kArrange(block);
        for (int64_t n = t.begin; n < t.end; n += sizes.outputs) kPass(block, n);
      }
    }
    Tiles::Release();
  }

  // Puts columns of four bytes, a register each, in a tile of rows.
  static void PutRows(const Block& b, __m512i (&of_columns)[16], int64_t tile, int64_t step) {
    Transpose16(of_columns);
    std::byte* const out = b.RowsAt(tile, step);
    for (int64_t i = 0; i < 16; ++i) {
      _mm512_mask_storeu_epi32(out + i * 4 * b.columns, Lanes(b.columns), of_columns[i]);
    }
  }

  // Steps of a tile of outputs as tiles, zeros where there is no output or column.
  static void BringTogether(const Block& b, int64_t n, int64_t outputs, int64_t first_step,
                            int64_t steps, std::byte* out) {
    for (int64_t o = 0; o < kOutputs; ++o) {
      const std::byte* const from = b.WeightsOf(n + o);
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t at = (first_step + step) * kLineBytes;
        const int64_t left = b.width * b.weight_bytes - at;
        const auto mask = left >= kLineBytes ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        _mm512_store_si512(
            out + step * kTileBytes + o * kLineBytes,
            o < outputs ? _mm512_maskz_loadu_epi8(mask, from + at) : _mm512_setzero_si512());
      }
    }
  }

  // Asks the memory for what comes kAheadSteps later of `outputs` outputs whose weights are there,
  // or of those behind them if there are `more`.
  static void AskAhead(const Block& b, const std::byte* weights, int64_t outputs, int64_t step,
                       bool more) {
    int64_t at = step + kAheadSteps;
    if (at >= b.steps) {
      if (!more) return;
      at -= b.steps;
      weights += outputs * b.output_bytes;
    }
    for (int64_t o = 0; o < outputs; ++o) {
      __builtin_prefetch(weights + o * b.output_bytes + at * kLineBytes, /*rw=*/0, /*locality=*/1);
    }
  }

  // Sums of a tile of rows, a register for each output from n on: adds the terms of a row, the
  // largest first, and puts it in its place in y, or adds it to what chunks before left there.
  static void Put(const Block& b, __m512i (&sums)[16], int64_t tile, int64_t n, int64_t outputs) {
    Transpose16(sums);  // a register for each column
    const __mmask16 lanes = Lanes(outputs);
    for (int64_t r = 0; r < b.tile_rows && tile * b.tile_rows + r < b.rows; ++r) {
      __m512 value = _mm512_castsi512_ps(sums[kTerms * r]);
      for (int64_t i = 1; i < kTerms; ++i) {
        value = _mm512_add_ps(value, _mm512_castsi512_ps(sums[kTerms * r + i]));
      }
      float* const y = b.t.y + (b.row + tile * b.tile_rows + r) * b.t.ldy + n;
      if (b.column > 0) value = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, y), value);
      _mm512_mask_storeu_ps(y, lanes, value);
    }
  }
};

}  // namespace banyan::trunk::cpu
