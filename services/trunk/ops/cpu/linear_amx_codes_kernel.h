// LinearTile of 8-bit codes with AMX-INT8 tiles: y[r, n] = sum over k of x[r, k] * code[n, k] *
// scale[n, group of k].
//
// Codes are read where they are, a tile of 16 outputs x 64 columns, a group, at a time. Of x the 64
// values of a group are whole numbers of 24 bits times a scale of the row's group, each as three
// digits of 8 bits: off by 2^-24 of the group's largest value, and products are exact. A tile of
// rows has 5 rows, three digits each, in fours of columns.
//
// Order of arithmetic of a (row, output): columns in chunks of kChunkColumns that are added up in
// order. In a chunk each digit has a sum of its groups in order, each a whole number (below 2^24)
// times the product of both scales; then the digits are added, the largest first. Neither the rows
// beside a row nor the way outputs are cut change it.
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
class AmxCodes : AmxPlace {
 public:
  static void Run(const LinearTile& t) {
    ForBlocks<Tiles, ArrangeRows, PassOutputs>(t, {1, kOutputs, kA, kB, kNumTiles});
  }

 private:
  static constexpr int64_t kGroup = kTileInt8GroupColumns;
  static_assert(kGroup == kLineBytes);
  static constexpr int64_t kChunkGroups = kChunkColumns / kGroup;
  static constexpr int64_t kRowsBytes = kBlockTiles * kChunkGroups * kTileBytes;
  static constexpr int64_t kScalesBytes = kBlockTiles * kChunkGroups * kLineBytes;
  static constexpr int64_t kCodesBytes = kChunkGroups * kTileBytes;
  static constexpr int kSums = 2;  // in turn: scaled while the next ones are made
  static_assert(kRowsBytes + kScalesBytes + kCodesBytes + kSums * kTileBytes <=
                kLinearScratchBytes);
  // 126.5 * 2^16: what is left below it are two digits, and the largest fits 8 bits with a carry.
  static constexpr float kLargest = 8290304.0f;

  // Tile registers, in turn: sums, codes, rows.
  static constexpr int kC = 0;
  static constexpr int kA = 2;
  static constexpr int kB = 4;
  static constexpr int kNumTiles = 6;

  // Of the columns of a tile of rows: the group's scale and the digit's place.
  static float* ScalesAt(const Block& b, int64_t tile, int64_t group) {
    return reinterpret_cast<float*>(b.t.scratch + kRowsBytes +
                                    (tile * b.steps + group) * kLineBytes);
  }
  static std::byte* CodesData(const Block& b) { return b.t.scratch + kRowsBytes + kScalesBytes; }
  static float* SumsAt(const Block& b, int which) {
    return reinterpret_cast<float*>(CodesData(b) + kCodesBytes + which * kTileBytes);
  }

  // In fours of columns.
  static void ArrangeRows(const Block& b) {
    for (int64_t tile = 0; tile < b.tiles; ++tile) {
      const int64_t row = tile * b.tile_rows;
      const int64_t rows = Lesser(b.rows - row, b.tile_rows);
      for (int64_t group = 0; group < b.steps; ++group) {
        alignas(64) float scales[16] = {};
        __m512i digits[16];
        for (__m512i& digit : digits) digit = _mm512_setzero_si512();
        for (int64_t r = 0; r < rows; ++r) {
          const float* const x = b.t.x + (b.row + row + r) * b.t.ldx + b.column + group * kGroup;
          scales[kTerms * r] =
              Split(x, Lesser(b.width - group * kGroup, kGroup), &digits[kTerms * r]);
          scales[kTerms * r + 1] = scales[kTerms * r] * 0x1p-8f;
          scales[kTerms * r + 2] = scales[kTerms * r] * 0x1p-16f;
        }
        _mm512_store_ps(ScalesAt(b, tile, group), _mm512_load_ps(scales));
        PutRows(b, digits, tile, group);
      }
    }
  }

  // Digits of `count` values, the largest first, zeros behind them. Returns what a one of the
  // largest digit stands for: no number if a value is none or has no end.
  static float Split(const float* x, int64_t count, __m512i* digits) {
    __m512 values[4];
    __m512 most = _mm512_setzero_ps();
    for (int64_t i = 0; i < 4; ++i) {
      values[i] = _mm512_maskz_loadu_ps(Lanes(count - i * 16), x + i * 16);
      // The second operand where one is no number.
      most = _mm512_max_ps(most, _mm512_abs_ps(values[i]));
      if (_mm512_cmp_ps_mask(values[i], values[i], _CMP_UNORD_Q) != 0) return __builtin_nanf("");
    }
    const float largest = _mm512_reduce_max_ps(most);
    if (largest > __FLT_MAX__) return __builtin_nanf("");
    // So small that its inverse has no end: nothing beside any other row.
    if (largest < 0x1p-100f) return 0;
    const __m512 inverse = _mm512_set1_ps(kLargest / largest);
    const __m512i carries = _mm512_set1_epi32(0x808080);
    alignas(64) unsigned char bytes[kTerms][kGroup];
    for (int64_t i = 0; i < 4; ++i) {
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
      // Half of each digit's range more, and its bytes less that.
      const __m512i parts = _mm512_xor_si512(_mm512_add_epi32(whole, carries), carries);
      for (int64_t term = 0; term < kTerms; ++term) {
        const __m128i of_term = _mm512_cvtepi32_epi8(
            _mm512_srlv_epi32(parts, _mm512_set1_epi32(static_cast<int>(16 - 8 * term))));
        _mm_store_si128(reinterpret_cast<__m128i*>(&bytes[term][i * 16]), of_term);
      }
    }
    for (int64_t term = 0; term < kTerms; ++term) digits[term] = _mm512_load_si512(bytes[term]);
    return largest / kLargest * 65536.0f;
  }

  static void PassOutputs(const Block& b, int64_t n) {
    const int64_t outputs = Lesser(b.t.end - n, kOutputs);
    const bool whole = outputs == kOutputs && b.HasWholeSteps();
    if (!whole) BringTogether(b, n, outputs, 0, b.steps, CodesData(b));
    const bool more = n + 2 * kOutputs <= b.t.end;
    for (int64_t tile = 0; tile < b.tiles; ++tile) {
      if (whole) {
        PassTile(b, n, outputs, tile, b.WeightsOf(n), b.output_bytes, kGroup, tile == 0, more);
      } else {
        PassTile(b, n, outputs, tile, CodesData(b), kLineBytes, kTileBytes, false, false);
      }
    }
  }

  // A tile of rows; codes of a group group_bytes behind those of the one before, of an output
  // output_bytes. `ask`: for the codes that come later, of this panel or, if there are `more`, of
  // the next.
  static void PassTile(const Block& b, int64_t n, int64_t outputs, int64_t tile,
                       const std::byte* codes, int64_t output_bytes, int64_t group_bytes, bool ask,
                       bool more) {
    const int64_t all_groups = (b.t.k + kGroup - 1) / kGroup;
    const float* const scales = b.t.scales + n * all_groups + b.column / kGroup;
    __m512 values[16];
    for (__m512& value : values) value = _mm512_setzero_ps();
    const auto add = [&](int64_t group) {
      const float* const sums = SumsAt(b, static_cast<int>(group % kSums));
      const __m512 places = _mm512_load_ps(ScalesAt(b, tile, group));
      const __mmask16 lanes = Lanes(b.columns);
#pragma GCC unroll 16
      for (int64_t o = 0; o < kOutputs; ++o) {
        const int64_t from = o < outputs ? o : 0;
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_maskz_load_epi32(lanes, sums + o * 16));
        const __m512 scale =
            _mm512_mul_ps(places, _mm512_set1_ps(scales[from * all_groups + group]));
        values[o] = _mm512_fmadd_ps(sum, scale, values[o]);
      }
    };
    for (int64_t group = 0; group < b.steps; ++group) {
      if (ask) AskAhead(b, codes, kOutputs, group, more);
      if (group % kSums == 0) {
        Group<0>(b, tile, group, codes, output_bytes, group_bytes);
      } else {
        Group<1>(b, tile, group, codes, output_bytes, group_bytes);
      }
      if (group > 0) add(group - 1);
    }
    add(b.steps - 1);
    __m512i sums[16];
    for (int64_t o = 0; o < kOutputs; ++o) sums[o] = _mm512_castps_si512(values[o]);
    Put(b, sums, tile, n, outputs);
  }

  template <int kTurn>
  static inline __attribute__((always_inline)) void Group(const Block& b, int64_t tile,
                                                          int64_t group, const std::byte* codes,
                                                          int64_t output_bytes,
                                                          int64_t group_bytes) {
    Tiles::template Zero<kC + kTurn>();
    Tiles::template Load<kA + kTurn>(codes + group * group_bytes, output_bytes);
    Tiles::template Load<kB + kTurn>(b.RowsAt(tile, group), 4 * b.columns);
    Tiles::template DotSS<kC + kTurn, kA + kTurn, kB + kTurn>();
    Tiles::template Store<kC + kTurn>(reinterpret_cast<std::byte*>(SumsAt(b, kTurn)), kLineBytes);
  }
};

}  // namespace banyan::trunk::cpu
