// LinearTile of bf16 weights with AMX-BF16 tiles: y[r, n] = sum over k of x[r, k] * w[n, k].
//
// x is split in three bf16 terms, which are all of its 24 bits, so that products with bf16 weights
// are exact. A tile of weights has 16 outputs (a panel) x 32 columns (a step), a tile of rows 5
// rows, three terms each, in pairs of columns. Two panels pass one tile of rows or two, with the
// weights where they are or, for more of them, those of a region of steps brought together: rows of
// a matrix are often a multiple of 4 KiB apart, which is one set of the first cache level.
//
// Order of arithmetic of a (row, output): columns in chunks of kChunkColumns that are added up in
// order. In a chunk each term has a sum of its steps in order, each step as TDPBF16PS adds it; then
// the terms are added, the largest first. Neither the rows beside a row nor the way outputs are cut
// change it.
//
// Tiles: the instructions (common/cpu/amx_tiles.h), or a model in a test.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/cpu/amx_tiles.h"
#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/linear_amx_place.h"

namespace banyan::trunk::cpu {

template <class Tiles>
class AmxLinear : AmxPlace {
 public:
  static void Run(const LinearTile& t) {
    ForBlocks<Tiles, ArrangeRows, PassOutputs>(t, {2, kPanels * kOutputs, kA, kB, kNumTiles});
  }

 private:
  static constexpr int64_t kPanels = 2;  // at once
  static constexpr int64_t kStepColumns = 32;
  // Whose weights stay in the first cache level while all tiles of rows pass.
  static constexpr int64_t kRegionSteps = 8;
  static constexpr int64_t kRowsBytes = kBlockTiles * kChunkColumns / kStepColumns * kTileBytes;
  static constexpr int64_t kRegionBytes = kPanels * kRegionSteps * kTileBytes;
  static constexpr int64_t kSumsBytes = kPanels * kBlockTiles * kTileBytes;
  static_assert(kRowsBytes + kRegionBytes + kSumsBytes <= kLinearScratchBytes);

  // Tile registers: sums [panel][tile of rows], weights of a panel, a tile of rows.
  static constexpr int kC = 0;
  static constexpr int kA = 4;
  static constexpr int kB = 6;
  static constexpr int kNumTiles = 8;

  static std::byte* RegionOf(const Block& b) { return b.t.scratch + kRowsBytes; }
  static float* SumsAt(const Block& b, int64_t panel, int64_t tile) {
    return reinterpret_cast<float*>(RegionOf(b) + kRegionBytes +
                                    (panel * kBlockTiles + tile) * kTileBytes);
  }

  // In pairs of columns.
  static void ArrangeRows(const Block& b) {
    for (int64_t tile = 0; tile < b.tiles; ++tile) {
      const int64_t row = tile * b.tile_rows;
      for (int64_t step = 0; step < b.steps; ++step) {
        const int64_t left = b.width - step * kStepColumns;
        __m512i terms[16];
        for (__m512i& term : terms) term = _mm512_setzero_si512();
        for (int64_t r = 0; r < b.tile_rows && row + r < b.rows; ++r) {
          const float* x = b.t.x + (b.row + row + r) * b.t.ldx + b.column + step * kStepColumns;
          Split(_mm512_maskz_loadu_ps(Lanes(left), x),
                left > 16 ? _mm512_maskz_loadu_ps(Lanes(left - 16), x + 16) : _mm512_setzero_ps(),
                &terms[kTerms * r]);
        }
        PutRows(b, terms, tile, step);
      }
    }
  }

  // 32 values as kTerms of bf16, the largest first.
  static void Split(__m512 a, __m512 b, __m512i* terms) {
    for (int64_t i = 0; i < kTerms; ++i) {
      terms[i] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
      a = Rest(a, _mm512_castsi512_si256(terms[i]));
      b = Rest(b, _mm512_extracti64x4_epi64(terms[i], 1));
    }
  }
  // x less its larger term; nothing of what is no number or has no end.
  static __m512 Rest(__m512 x, __m256i large) {
    const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(large), 16));
    const __m512 rest = _mm512_sub_ps(x, value);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest);
  }

  // Outputs from n on, kPanels panels or what is left of them.
  static void PassOutputs(const Block& b, int64_t n) {
    const int64_t outputs = Lesser(b.t.end - n, kPanels * kOutputs);
    const bool whole = outputs == kPanels * kOutputs && b.HasWholeSteps();
    if (b.tiles == 1 && whole) {
      InPlace<1>(b, n);
    } else if (b.tiles == 2 && whole) {
      InPlace<2>(b, n);
    } else if (outputs > kOutputs) {
      ByRegions<2>(b, n, outputs);
    } else {
      ByRegions<1>(b, n, outputs);
    }
    for (int64_t panel = 0; panel * kOutputs < outputs; ++panel) {
      const int64_t first = panel * kOutputs;
      for (int64_t tile = 0; tile < b.tiles; ++tile) {
        __m512i sums[16];
        for (int64_t o = 0; o < kOutputs; ++o) {
          sums[o] = _mm512_maskz_loadu_epi32(Lanes(b.columns), SumsAt(b, panel, tile) + o * 16);
        }
        Put(b, sums, tile, n + first, Lesser(outputs - first, kOutputs));
      }
    }
  }

  // Two panels where they are.
  template <int kNumTiles>
  static void InPlace(const Block& b, int64_t n) {
    const std::byte* const weights = b.WeightsOf(n);
    const int64_t panel_bytes = kOutputs * b.output_bytes;
    const bool more = n + 2 * kPanels * kOutputs <= b.t.end;
    ZeroSums<2, kNumTiles>();
    for (int64_t step = 0; step < b.steps; ++step) {
      AskAhead(b, weights, kPanels * kOutputs, step, more);
      const std::byte* const w = weights + step * kLineBytes;
      Step<2, kNumTiles>(w, w + panel_bytes, b.output_bytes, b.RowsAt(0, step), b.RowsAt(1, step),
                         4 * b.columns);
    }
    StoreSums<2, kNumTiles>(b, 0);
  }

  template <int kNumPanels>
  static void ByRegions(const Block& b, int64_t n, int64_t outputs) {
    for (int64_t step = 0; step < b.steps; step += kRegionSteps) {
      const int64_t steps = Lesser(b.steps - step, kRegionSteps);
      for (int64_t panel = 0; panel < kNumPanels; ++panel) {
        BringTogether(b, n + panel * kOutputs, Lesser(outputs - panel * kOutputs, kOutputs), step,
                      steps, RegionOf(b) + panel * kRegionSteps * kTileBytes);
      }
      RowsAhead ahead = RegionAhead(b, n, step + kRegionSteps);
      int64_t tile = 0;
      for (; tile + 2 <= b.tiles; tile += 2) Region<kNumPanels, 2>(b, tile, step, steps, &ahead);
      if (tile < b.tiles) Region<kNumPanels, 1>(b, tile, step, steps, &ahead);
    }
  }

  template <int kNumPanels, int kNumTiles>
  static inline __attribute__((always_inline)) void ZeroSums() {
    Tiles::template Zero<kC>();
    if constexpr (kNumTiles == 2) Tiles::template Zero<kC + 1>();
    if constexpr (kNumPanels == 2) Tiles::template Zero<kC + 2>();
    if constexpr (kNumPanels == 2 && kNumTiles == 2) Tiles::template Zero<kC + 3>();
  }
  template <int kNumPanels, int kNumTiles>
  static inline __attribute__((always_inline)) void LoadSums(const Block& b, int64_t tile) {
    const auto load = [&]<int kPanel, int kTile>() {
      Tiles::template Load<kC + 2 * kPanel + kTile>(
          reinterpret_cast<const std::byte*>(SumsAt(b, kPanel, tile + kTile)), 64);
    };
    ForSums<kNumPanels, kNumTiles>(load);
  }
  template <int kNumPanels, int kNumTiles>
  static inline __attribute__((always_inline)) void StoreSums(const Block& b, int64_t tile) {
    const auto store = [&]<int kPanel, int kTile>() {
      Tiles::template Store<kC + 2 * kPanel + kTile>(
          reinterpret_cast<std::byte*>(SumsAt(b, kPanel, tile + kTile)), 64);
    };
    ForSums<kNumPanels, kNumTiles>(store);
  }
  template <int kNumPanels, int kNumTiles, class F>
  static inline __attribute__((always_inline)) void ForSums(const F& f) {
    f.template operator()<0, 0>();
    if constexpr (kNumTiles == 2) f.template operator()<0, 1>();
    if constexpr (kNumPanels == 2) f.template operator()<1, 0>();
    if constexpr (kNumPanels == 2 && kNumTiles == 2) f.template operator()<1, 1>();
  }

  // The products of a step. w: of each panel, x: of each tile of rows.
  template <int kNumPanels, int kNumTiles>
  static inline __attribute__((always_inline)) void Step(const std::byte* w0, const std::byte* w1,
                                                         int64_t row_bytes, const std::byte* x0,
                                                         const std::byte* x1, int64_t pair_bytes) {
    Tiles::template Load<kB>(x0, pair_bytes);
    Tiles::template Load<kA>(w0, row_bytes);
    Tiles::template DotBF16<kC, kA, kB>();
    if constexpr (kNumPanels == 2) {
      Tiles::template Load<kA + 1>(w1, row_bytes);
      Tiles::template DotBF16<kC + 2, kA + 1, kB>();
    }
    if constexpr (kNumTiles == 2) {
      Tiles::template Load<kB + 1>(x1, pair_bytes);
      Tiles::template DotBF16<kC + 1, kA, kB + 1>();
      if constexpr (kNumPanels == 2) Tiles::template DotBF16<kC + 3, kA + 1, kB + 1>();
    }
  }

  // The weights of the region from `step` on, asked for with the steps of the one before it.
  static RowsAhead RegionAhead(const Block& b, int64_t n, int64_t step) {
    constexpr int64_t kAtOnce = kPanels * kOutputs;
    if (step >= b.steps) {
      step = 0;
      n += kAtOnce;
    }
    const bool there = n + kAtOnce <= b.t.end;
    return RowsAhead(b.WeightsOf(n) + step * kLineBytes, nullptr, b.output_bytes,
                     there ? static_cast<int32_t>(kAtOnce) : 0, kRegionSteps * kLineBytes,
                     (b.tiles + 1) / 2 * kRegionSteps);
  }

  template <int kNumPanels, int kNumTiles>
  static void Region(const Block& b, int64_t tile, int64_t first_step, int64_t steps,
                     RowsAhead* ahead) {
    if (first_step == 0) {
      ZeroSums<kNumPanels, kNumTiles>();
    } else {
      LoadSums<kNumPanels, kNumTiles>(b, tile);
    }
    const std::byte* w = RegionOf(b);
    const std::byte* x = b.RowsAt(tile, first_step);
    const int64_t next_tile = b.steps * b.rows_bytes;
    for (int64_t step = 0; step < steps; ++step, w += kTileBytes, x += b.rows_bytes) {
      ahead->Step();
      Step<kNumPanels, kNumTiles>(w, w + kRegionSteps * kTileBytes, 64, x, x + next_tile,
                                  4 * b.columns);
    }
    StoreSums<kNumPanels, kNumTiles>(b, tile);
  }
};

}  // namespace banyan::trunk::cpu
