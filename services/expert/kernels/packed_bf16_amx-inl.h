// bf16 and nf4 with AMX tiles: 16 outputs x up to 16 columns x 32 inputs an instruction. At kFast a
// column is a row. At kExact a row is two, its larger and its smaller terms (TwoTermRows), so that
// one row still takes the same instructions; the two sums are then added.
// Included inside the region and namespace of its tier, after packed_panels-inl.h; no include guard
// on purpose.
//
// Weights are the left factor and rows the right one, so that weights need no transposition: bf16
// tiles are read in place, or copied row by row for several tiles of rows; nf4 is decoded in its
// natural order. It is the rows that must be in pairs of inputs, [k / 2][N columns][2], once for
// all panels of a call: for one row of one column they are so as they stand. C is [16 outputs][N
// columns]: that of gate and up becomes hidden rows in pairs by pairing its outputs, so those of
// down need no arranging; that of down is transposed. Several tiles of rows pass a region of k
// after the other.
//
// Order of arithmetic of a (row, output): one sum for each column, k ascending in steps of 32
// inputs, each step as TDPBF16PS adds it. N, and with it the number of rows, changes nothing of it.
//
// Tiles: the instructions (amx_tiles.h, which the includer has included), or a model in a test.

#include "common/cpu/transpose_avx512-inl.h"

template <class Tiles, int kTerms>
struct Amx {
  static_assert(kTerms == 1 || kTerms == 2);
  static constexpr const char* kTier = Tiles::kTier;
  static constexpr int kPanels = 2;
  using Rows = std::conditional_t<kTerms == 1, BF16Rows, TwoTermRows>;

  static constexpr int32_t kColumns = 16;  // of a whole tile
  static constexpr int32_t kTileRows = kColumns / kTerms;
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int32_t RowTilesIn(int32_t num_rows) {
    return (num_rows + kTileRows - 1) / kTileRows;
  }

  // Tile registers. A: weights, B: rows, both of an even and an odd step. C: sums, one of each
  // panel. No more of them: a Xeon (model 207) whose threads share cores with others does a product
  // in 13 ns with two tiles of sums and in 17 to 28 with four, however the loads are arranged;
  // little is left to rename registers with.
  static constexpr int kA = 0;
  static constexpr int kB = 2;
  static constexpr int kC = 4;
  static constexpr int kNumTiles = 6;

  // Steps whose weights stay in the first cache level while all tiles of rows pass; sums wait in
  // memory from region to region. Two panels 16 KiB, three tiles of rows 24 KiB. On that Xeon, 15
  // threads, ns a product: rows and weights from the second level 23, in regions of 16 steps 23, of
  // 8 20, all from the first level 17. Weights in place, 4 KiB apart, fall into one set: 28.
  static constexpr int64_t kRegionSteps = 8;

  // Scratch: sums [tile of rows][panel], the weights of a region as tiles [panel][step], the rows
  // in pairs of inputs.
  static constexpr int64_t kSumsBytes = RowTilesIn(kBlockRows) * 2 * kTileBytes;
  static constexpr int64_t kWeightsBytes = 2 * kRegionSteps * kTileBytes;
  static constexpr int64_t kRowsBytes = (kTerms == 1 ? 480 : 512) << 10;
  static constexpr int64_t kTileScratchBytes = kSumsBytes + kWeightsBytes + kRowsBytes;
  static std::byte* SumsOf(const PanelArgs& a, int32_t row_tile) {
    return a.scratch + row_tile * 2 * kTileBytes;
  }
  static std::byte* WeightsOf(const PanelArgs& a) { return a.scratch + kSumsBytes; }
  static std::byte* RowsOf(const PanelArgs& a) { return WeightsOf(a) + kWeightsBytes; }

  static int32_t BlockRows(int64_t k) {
    const int64_t tiles = kRowsBytes / (PaddedInputs(k) * 2 * kColumns);
    return static_cast<int32_t>(std::min<int64_t>(tiles * kTileRows, kBlockRows));
  }
  static_assert(kRowsBytes >= kMaxPackedInputs * 2 * kColumns);

  static int64_t PaddedSteps(const PanelArgs& a) { return PaddedInputs(a.k) / kStepInputs; }
  // N: columns of the tiles of rows.
  static int32_t Columns(int32_t call_rows) {
    const int32_t columns = call_rows * kTerms;
    return columns == 1 ? 1 : columns <= 4 ? 4 : kColumns;
  }
  // Whole tiles of rows.
  static constexpr bool kTiledHidden = true;
  static int32_t HiddenRows(int32_t num_rows) {
    const int32_t rows = RowsOfTile(Columns(num_rows));
    return (num_rows + rows - 1) / rows * rows;
  }
  // That a tile of so many columns holds.
  static int32_t RowsOfTile(int32_t columns) { return columns / kTerms; }

  // Where step `step` of a tile of rows stands; its 16 pairs are 4 N bytes apart.
  struct TiledRows {
    const std::byte* data;
    int32_t columns;
    int64_t tile_bytes;
    const std::byte* At(int32_t tile, int64_t step) const {
      return data + tile * tile_bytes + step * columns * 64;
    }
  };
  static bool StandReady(const PanelArgs& a) { return kTerms == 1 && a.call_rows == 1; }
  static TiledRows RowTilesOf(const PanelArgs& a) {
    const int32_t columns = Columns(a.call_rows);
    if (a.hidden != nullptr) return {a.hidden, columns, RowsOfTile(columns) * a.hidden_stride};
    return {StandReady(a) ? a.rows[0] : RowsOf(a), columns, PaddedSteps(a) * columns * 64};
  }

  // Columns t of 2 * pairs inputs, in pairs of inputs.
  static inline __attribute__((always_inline)) void PutPairs(__m512i (&t)[kColumns], int64_t pairs,
                                                             int32_t columns, std::byte* out) {
    if (columns == kColumns) {
      Transpose16(t);
      for (int64_t p = 0; p < pairs; ++p) _mm512_store_si512(out + p * 64, t[p]);
      return;
    }
    // Lane l of pair[i]: pair 4 l + i. Then lanes and registers change places.
    const __m512i low[] = {_mm512_unpacklo_epi32(t[0], t[1]), _mm512_unpacklo_epi32(t[2], t[3])};
    const __m512i high[] = {_mm512_unpackhi_epi32(t[0], t[1]), _mm512_unpackhi_epi32(t[2], t[3])};
    const __m512i pair[] = {
        _mm512_unpacklo_epi64(low[0], low[1]), _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]), _mm512_unpackhi_epi64(high[0], high[1])};
    const __m512i a = _mm512_shuffle_i32x4(pair[0], pair[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(pair[2], pair[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(pair[0], pair[1], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(pair[2], pair[3], 0xee);
    _mm512_store_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_store_si512(out + 64, _mm512_shuffle_i32x4(a, b, 0xdd));
    if (pairs == kPanelOutputs / 2) return;
    _mm512_store_si512(out + 128, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_store_si512(out + 192, _mm512_shuffle_i32x4(c, d, 0xdd));
  }

  static void BeginRows(const PanelArgs& a) {
    const int32_t columns = Columns(a.call_rows);
    TileConfig config;
    for (int tile = 0; tile < kNumTiles; ++tile) {
      config.rows[tile] = 16;  // outputs of A and C, pairs of inputs of B
      config.row_bytes[tile] = static_cast<uint16_t>(tile < kB ? 64 : 4 * columns);
    }
    Tiles::Configure(config);
    if (StandReady(a) || a.hidden != nullptr) return;
    // The memory brings the first panels meanwhile.
    const std::byte* const none = nullptr;
    const int64_t steps = PaddedSteps(a);
    const int32_t rows = RowsOfTile(columns);
    const int64_t all_steps = (a.num_rows + rows - 1) / rows * steps;
    Ahead first(a.cold ? a.weights[0] : none, a.panel_bytes, all_steps);
    Ahead second(a.cold && a.num_panels == 2 ? a.weights[1] : none, a.panel_bytes, all_steps);
    std::byte* out = RowsOf(a);
    for (int32_t row = 0; row < a.num_rows; row += rows) {
      const int32_t n = std::min(rows, a.num_rows - row);
      for (int64_t step = 0; step < steps; ++step, out += columns * 64) {
        first.Step();
        second.Step();
        __m512i t[kColumns];
        for (__m512i& column : t) column = _mm512_setzero_si512();
        for (int32_t r = 0; r < kTileRows; ++r) {
          for (int i = 0; i < kTerms && r < n; ++i) {
            t[r * kTerms + i] =
                _mm512_load_si512(a.rows[row + r] + step * Rows::kStepBytes + i * 64);
          }
        }
        PutPairs(t, kStepInputs / 2, columns, out);
      }
    }
  }
  static void EndRows() { Tiles::Release(); }

  // The weights of up to two panels, as tiles: step s of panel p at data[p] + (s & step_mask) *
  // step_bytes, its outputs row_bytes apart.
  struct TiledWeights {
    const std::byte* data[2];
    int64_t row_bytes;
    int64_t step_bytes;
    int64_t step_mask;
    const std::byte* At(int panel, int64_t step) const {
      return data[panel] + (step & step_mask) * step_bytes;
    }
  };
  // Those that are made in the scratch.
  static TiledWeights MadeWeights(const PanelArgs& a) {
    const std::byte* const made = WeightsOf(a);
    return {{made, made + kRegionSteps * kTileBytes}, 64, kTileBytes, kRegionSteps - 1};
  }
  // Where the first step of a chunk is made.
  static std::byte* MadeChunk(const PanelArgs& a, int panel, int64_t chunk) {
    return WeightsOf(a) + (panel * kRegionSteps + (2 * chunk & (kRegionSteps - 1))) * kTileBytes;
  }

  template <int kNumPanels>
  static inline __attribute__((always_inline)) void Step(const TiledWeights& w, const TiledRows& x,
                                                         int32_t row_tile, int64_t step) {
    Tiles::template Load<kB>(x.At(row_tile, step), 4 * x.columns);
    Tiles::template Load<kA>(w.At(0, step), w.row_bytes);
    Tiles::template DotBF16<kC, kA, kB>();
    if constexpr (kNumPanels == 2) {
      Tiles::template Load<kA>(w.At(1, step), w.row_bytes);
      Tiles::template DotBF16<kC + 1, kA, kB>();
    }
  }

  // A panel's sums of step `step`, even or odd, whose rows are in B.
  template <int kPanel, int kOdd>
  static inline __attribute__((always_inline)) void Product(const TiledWeights& w, int64_t step) {
    Tiles::template Load<kA + kOdd>(w.At(kPanel, step), w.row_bytes);
    Tiles::template DotBF16<kC + kPanel, kA + kOdd, kB + kOdd>();
  }

  // Steps [first, end) of a tile of rows, `first` even. `produce(chunk, panel)` makes the weights
  // of a chunk.
  template <int kNumPanels, class Produce>
  static inline __attribute__((always_inline)) void Steps(const TiledWeights& w, const TiledRows& x,
                                                          int32_t row_tile, int64_t first,
                                                          int64_t end, Produce produce) {
    // One chunk behind what is produced: a tile load cannot take what is still on its way to the
    // first cache level. Panel by panel, so that making weights and multiplying run beside each
    // other.
    const int64_t chunks = (end + 1) / 2;
    for (int64_t chunk = first / 2; chunk <= chunks; ++chunk) {
      const int64_t step = 2 * (chunk - 1);
      const bool even = step >= first;
      const bool odd = even && step + 1 < end;
      if (even) Tiles::template Load<kB>(x.At(row_tile, step), 4 * x.columns);
      if (odd) Tiles::template Load<kB + 1>(x.At(row_tile, step + 1), 4 * x.columns);
      if (chunk < chunks) produce(chunk, 0);
      if (even) Product<0, 0>(w, step);
      if (odd) Product<0, 1>(w, step + 1);
      if constexpr (kNumPanels == 2) {
        if (chunk < chunks) produce(chunk, 1);
        if (even) Product<1, 0>(w, step);
        if (odd) Product<1, 1>(w, step + 1);
      }
    }
  }

  // Sums of a tile of rows, from 0 or from memory, and to memory.
  template <int kNumPanels>
  static void BeginSums(const std::byte* sums, int64_t stride, bool zero) {
    if (zero) {
      Tiles::template Zero<kC>();
      if constexpr (kNumPanels == 2) Tiles::template Zero<kC + 1>();
    } else {
      Tiles::template Load<kC>(sums, stride);
      if constexpr (kNumPanels == 2) Tiles::template Load<kC + 1>(sums + kTileBytes, stride);
    }
  }
  template <int kNumPanels>
  static void EndSums(std::byte* sums, int64_t stride) {
    Tiles::template Store<kC>(sums, stride);
    if constexpr (kNumPanels == 2) Tiles::template Store<kC + 1>(sums + kTileBytes, stride);
  }
  // Bytes of a panel's outputs in a tile of hidden rows: half a step.
  static constexpr int64_t PanelOfHidden(int32_t columns) { return kPanelOutputs * 2 * columns; }

  // Where the value of two registers of sums [output][N rows] goes in a register of pairs.
  template <int N>
  static __m512i PairOrder() {
    alignas(64) static constexpr auto kOrder = [] {
      std::array<uint16_t, 32> order{};
      for (int i = 0; i < 32; ++i) {
        const int pair = i / (2 * N);
        order[static_cast<size_t>(i)] =
            static_cast<uint16_t>((2 * pair + i % 2) * N + i % (2 * N) / 2);
      }
      return order;
    }();
    return _mm512_load_si512(kOrder.data());
  }

  // use(row, its 16 sums) for each row of a tile.
  template <int N, class Use>
  static inline __attribute__((always_inline)) void ForRows(const std::byte* sums, int32_t num_rows,
                                                            Use use) {
    __m512 of[N];  // of each column
    if constexpr (N == 1) {
      of[0] = _mm512_load_ps(sums);
    } else if constexpr (N == 4) {
      const auto* const of4 = reinterpret_cast<const float*>(sums);  // outputs in a register
      const __m512i lane =
          _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
      for (int c = 0; c < N; ++c) {
        const __m512i of_column = _mm512_add_epi32(lane, _mm512_set1_epi32(c));
        const __m512 low =
            _mm512_permutex2var_ps(_mm512_load_ps(of4), of_column, _mm512_load_ps(of4 + 16));
        const __m512 high =
            _mm512_permutex2var_ps(_mm512_load_ps(of4 + 32), of_column, _mm512_load_ps(of4 + 48));
        of[c] = _mm512_mask_mov_ps(low, __mmask16{0xff00}, high);
      }
    } else {
      __m512i t[16];
      for (int o = 0; o < 16; ++o) t[o] = _mm512_load_si512(sums + o * 64);
      Transpose16(t);
      for (int c = 0; c < N; ++c) of[c] = _mm512_castsi512_ps(t[c]);
    }
    for (int32_t r = 0; r < num_rows; ++r) {
      if constexpr (kTerms == 1) {
        use(r, of[r]);
      } else {
        use(r, _mm512_add_ps(of[2 * r], of[2 * r + 1]));
      }
    }
  }

  // A tile's hidden values of a panel from its sums, columns being rows: they need no
  // transposition.
  template <int N>
  static void PutHidden(const std::byte* sums, int64_t outputs, std::byte* out) {
    const auto* const gate = reinterpret_cast<const float*>(sums);
    const float* const up = gate + kTileBytes / sizeof(float);
    const auto hidden = [&](int v) {
      const int64_t left = std::clamp<int64_t>(outputs * N - v * 16, 0, 16);
      const auto mask = static_cast<__mmask16>((1u << left) - 1u);
      const __m512 value = _mm512_mul_ps(Silu<V>(V::LoadX(gate + v * 16)), V::LoadX(up + v * 16));
      return _mm512_maskz_mov_ps(mask, value);
    };
    if constexpr (N == 1) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(hidden(0)));
    } else {
      const __m512i order = PairOrder<N>();
      for (int v = 0; v < N; v += 2) {
        const auto both = (__m512i)_mm512_cvtne2ps_pbh(hidden(v + 1), hidden(v));
        _mm512_store_si512(out + v * 32, _mm512_permutexvar_epi16(order, both));
      }
    }
  }
  // The same where rows have two columns.
  template <int N>
  static void PutTwoTerms(const std::byte* sums, int64_t outputs, int32_t num_rows,
                          std::byte* out) {
    const auto mask = static_cast<__mmask16>((1u << outputs) - 1u);
    __m512 gates[kTileRows];
    ForRows<N>(sums, num_rows, [&](int32_t r, __m512 gate) { gates[r] = gate; });
    __m512i t[kColumns];
    for (__m512i& column : t) column = _mm512_setzero_si512();
    ForRows<N>(sums + kTileBytes, num_rows, [&](int32_t r, __m512 up) {
      const __m512 value = _mm512_maskz_mov_ps(mask, _mm512_mul_ps(Silu<V>(gates[r]), up));
      __m256i large;
      __m256i small;
      SplitInTwo(value, large, small);
      t[2 * r] = _mm512_zextsi256_si512(large);
      t[2 * r + 1] = _mm512_zextsi256_si512(small);
    });
    PutPairs(t, kPanelOutputs / 2, N, out);
  }

  // Streams i and i + 1, gate and up.
  template <int N>
  static void Done(const GateUpPart<Amx>& part, const PanelArgs& a, int32_t i, int32_t first_row) {
    const int32_t panel = part.a.first_panel + part.Panels(i);
    // Beyond the width a row-major matrix has no outputs; sums are undefined there.
    const int64_t outputs =
        std::min<int64_t>(kPanelOutputs, part.a.width - int64_t{panel} * kPanelOutputs);
    const int32_t pad = panel + 1 == part.a.end_panel
                            ? (kGateUpPanels - (panel + 1) % kGateUpPanels) % kGateUpPanels
                            : 0;
    for (int32_t tile = 0; tile < RowTilesIn(a.num_rows); ++tile) {
      const int32_t row = tile * kTileRows;
      std::byte* out =
          part.a.hidden + (first_row + row) * part.a.hidden_stride + panel * PanelOfHidden(N);
      if constexpr (kTerms == 1) {
        PutHidden<N>(SumsOf(a, tile), outputs, out);
      } else {
        PutTwoTerms<N>(SumsOf(a, tile), outputs, std::min(kTileRows, a.num_rows - row), out);
      }
      if (pad > 0) {
        std::memset(out + PanelOfHidden(N), 0, static_cast<size_t>(pad * PanelOfHidden(N)));
      }
    }
  }

  // Streams i and, of two, i + 1.
  template <int N>
  static void Done(const DownPart<Amx>& part, const PanelArgs& a, int32_t i, int num_streams,
                   int32_t first_row) {
    for (int32_t tile = 0; tile < RowTilesIn(a.num_rows); ++tile) {
      const int32_t row = first_row + tile * kTileRows;
      const int32_t n = std::min(kTileRows, a.num_rows - tile * kTileRows);
      for (int p = 0; p < num_streams; ++p) {
        ForRows<N>(SumsOf(a, tile) + p * kTileBytes, n,
                   [&](int32_t r, __m512 value) { part.Put(row + r, i + p, value); });
      }
    }
  }

  // use(number of columns), known when compiled.
  template <class Use>
  static void ForColumns(const PanelArgs& a, Use use) {
    const int32_t columns = Columns(a.call_rows);
    if constexpr (kTerms == 1) {
      if (columns == 1) return use(std::integral_constant<int, 1>{});
    }
    if (columns == 4) return use(std::integral_constant<int, 4>{});
    use(std::integral_constant<int, kColumns>{});
  }
  static void Done(const GateUpPart<Amx>& part, const PanelArgs& a, int32_t i, int,
                   int32_t first_row) {
    ForColumns(a, [&](auto columns) { Done<columns>(part, a, i, first_row); });
  }
  static void Done(const DownPart<Amx>& part, const PanelArgs& a, int32_t i, int num_streams,
                   int32_t first_row) {
    ForColumns(a, [&](auto columns) { Done<columns>(part, a, i, num_streams, first_row); });
  }

  static int64_t RowSteps(int32_t num_rows, int64_t k) {
    return RowTilesIn(num_rows) * NumChunks(k);
  }

  // All rows; weights are produced with the first tile of them, and what comes next is asked for
  // evenly.
  template <int kNumPanels, class Produce>
  static void AllRows(const PanelArgs& a, const TiledWeights& w, int64_t steps, Produce produce) {
    const TiledRows x = RowTilesOf(a);
    const int32_t tiles = RowTilesIn(a.num_rows);
    const int64_t stride = x.columns * int64_t{sizeof(float)};
    const int64_t calls = tiles * ((steps + 1) / 2);
    Ahead first(a.next[0], a.panel_bytes, calls);
    Ahead second(kNumPanels == 2 ? a.next[1] : nullptr, a.panel_bytes, calls);
    const auto ahead = [&] {
      first.Step();
      second.Step();
      a.rows_ahead->Step();
    };
    const auto make = [&](int64_t chunk, int panel) {
      if (panel == 0) ahead();
      produce(chunk, panel);
    };
    const int64_t region = tiles == 1 ? steps : kRegionSteps;
    for (int64_t begin = 0; begin < steps; begin += region) {
      const int64_t end = std::min(begin + region, steps);
      for (int32_t tile = 0; tile < tiles; ++tile) {
        BeginSums<kNumPanels>(SumsOf(a, tile), stride, begin == 0);
        if (tile == 0) {
          Steps<kNumPanels>(w, x, tile, begin, end, make);
        } else {
          for (int64_t step = begin; step < end; step += 2) {
            ahead();
            Step<kNumPanels>(w, x, tile, step);
            if (step + 1 < end) Step<kNumPanels>(w, x, tile, step + 1);
          }
        }
        EndSums<kNumPanels>(SumsOf(a, tile), stride);
      }
    }
  }

  // How far ahead a cold panel is asked for.
  static constexpr uintptr_t kColdBytes = 2048;

  // One chunk of a panel as tiles. A pair's weights are converted together, one conversion instead
  // of two, then each is read twice into a register, so that no index needs more than its low five
  // bits. A lookup takes both of the ports that a Xeon (model 207) has for such registers: what
  // counts is the number of instructions beside it.
  static inline __attribute__((always_inline)) void DecodeNF4Chunk(__m512 table,
                                                                   const std::byte* chunk,
                                                                   std::byte* out) {
    const auto* absmax = reinterpret_cast<const float*>(chunk + kNF4ChunkScales);
    alignas(64) std::byte weights[kPanelOutputs * 32];
    for (int64_t pair = 0; pair < kPanelOutputs / 2; ++pair) {
      const __m512 even = _mm512_mul_ps(table, _mm512_set1_ps(absmax[2 * pair]));
      const __m512 odd = _mm512_mul_ps(table, _mm512_set1_ps(absmax[2 * pair + 1]));
      _mm512_store_si512(weights + pair * 64, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    }
    for (int64_t pair = 0; pair < kPanelOutputs / 2; ++pair, out += 128) {
      const auto* const both = reinterpret_cast<const __m256i*>(weights + pair * 64);
      const __m512i even = _mm512_broadcast_i64x4(_mm256_load_si256(both));
      const __m512i odd = _mm512_broadcast_i64x4(_mm256_load_si256(both + 1));
      const __m512i codes = _mm512_load_si512(chunk + pair * 64);
      const auto put = [&](__m512i index, __m512i of, std::byte* at) {
        _mm512_store_si512(at, _mm512_permutexvar_epi16(index, of));
      };
      put(codes, even, out);
      put(_mm512_srli_epi16(codes, 4), even, out + kTileBytes);
      put(_mm512_srli_epi16(codes, 8), odd, out + 64);
      put(_mm512_srli_epi16(codes, 12), odd, out + kTileBytes + 64);
    }
  }

  template <int kNumPanels>
  static void NF4Panels(const PanelArgs& a) {
    const __m512 table = _mm512_loadu_ps(kNF4Table);
    AllRows<kNumPanels>(a, MadeWeights(a), PaddedSteps(a), [&](int64_t chunk, int panel) {
      const std::byte* const codes = a.weights[panel] + chunk * kNF4ChunkBytes;
      for (int64_t line = 0; line < kNF4ChunkBytes && a.cold; line += 64) {
        AskFor(reinterpret_cast<uintptr_t>(codes) + static_cast<uintptr_t>(line) + kColdBytes);
      }
      DecodeNF4Chunk(table, codes, MadeChunk(a, panel, chunk));
    });
  }

  // A chunk of row-major weights as tiles, with zeros behind k and the last output: what lies there
  // is not zero, nor ours to read.
  static void CopyChunk(const std::byte* weights, int64_t k, int32_t num_outputs, int64_t chunk,
                        std::byte* out) {
    const int64_t step_inputs = 2 * kStepInputs;
    const int64_t rest = std::min(step_inputs, k - chunk * step_inputs);
    const auto mask = [&](int64_t n) {
      return n >= kStepInputs ? ~__mmask32{0} : (__mmask32{1} << std::max<int64_t>(n, 0)) - 1;
    };
    const __mmask32 even = mask(rest);
    const __mmask32 odd = mask(rest - kStepInputs);
    const std::byte* at = weights + chunk * step_inputs * 2;
    for (int32_t o = 0; o < num_outputs; ++o, at += k * 2, out += 64) {
      _mm512_store_si512(out, _mm512_maskz_loadu_epi16(even, at));
      _mm512_store_si512(out + kTileBytes, _mm512_maskz_loadu_epi16(odd, at + 64));
    }
    for (int64_t o = num_outputs; o < kPanelOutputs; ++o, out += 64) {
      _mm512_store_si512(out, _mm512_setzero_si512());
      _mm512_store_si512(out + kTileBytes, _mm512_setzero_si512());
    }
  }

  template <int kNumPanels>
  static void BF16Panels(const PanelArgs& a) {
    const bool whole = a.k % kStepInputs == 0 && a.num_outputs[kNumPanels - 1] == kPanelOutputs;
    const int64_t steps = whole ? a.k / kStepInputs : PaddedSteps(a);
    const auto ask = [&](int64_t chunk, int panel) {
      const auto at = reinterpret_cast<uintptr_t>(a.weights[panel]) + kColdBytes / kPanelOutputs;
      for (int64_t line = 0; line < 2 * kPanelOutputs && a.cold; ++line) {
        AskFor(at + static_cast<uintptr_t>(line / 2 * a.k * 2 + chunk * 128 + line % 2 * 64));
      }
    };
    if (whole && RowTilesIn(a.num_rows) == 1) {
      const TiledWeights in_place = {{a.weights[0], a.weights[1]}, a.k * 2, 64, -1};
      return AllRows<kNumPanels>(a, in_place, steps, ask);
    }
    AllRows<kNumPanels>(a, MadeWeights(a), steps, [&](int64_t chunk, int panel) {
      ask(chunk, panel);
      CopyChunk(a.weights[panel], a.k, a.num_outputs[panel], chunk, MadeChunk(a, panel, chunk));
    });
  }

  template <class F>
  static void Panels(const PanelArgs& a) {
    if constexpr (F::kFormat == PoolFormat::kBF16) {
      a.num_panels == 2 ? BF16Panels<2>(a) : BF16Panels<1>(a);
    } else {
      a.num_panels == 2 ? NF4Panels<2>(a) : NF4Panels<1>(a);
    }
  }
};
