// The integer formats with AMX tiles: up to 16 rows x 16 outputs x 32 inputs an instruction, the
// sums of each group scaled in AVX-512. Included inside the region and namespace of its tier, after
// packed_int_vnni-inl.h; no include guard on purpose; the includer has included amx_tiles.h and
// <utility>.
//
// Two panels are worked through in regions of kRegionChunks chunks, whose weights are unpacked to
// signed bytes and whose scales to f32 once for all groups of rows, a unit with each unit of the
// pass before (all before that pass: gate and up 13 to 18 % slower). A region against one group of
// rows is a chain of units (panel, group of 32 inputs): the tiles of one unit multiply while the
// sums of the one before, fast of the second one before, are scaled into accumulators in registers.
//
// On a Xeon (model 207) whose threads share cores with others, ns for a unit of 16 rows, exact and
// fast: multiplying and storing alone 31 and 16, scaling alone 18 and 11, one after the other 43 to
// 48 and 25. All eight tile registers in use make it slower (68 to 85 ns exact): little is left to
// rename them with. Regions of 2 chunks, or asking for the next rows into the first cache level: no
// gain. The second one before for exact: 4 to 7 % slower, half of its sums lie as those just
// stored.
//
// Places. A tile load waits for an earlier store to an address with the same low 12 bits (a unit 32
// ns instead of 28, on some CPUs 42). So rows are copied in units of 512 bytes as weights are, and
// of unit u of a region, modulo 4 KiB and counted from weights + 512 u, there lie: weights at 0,
// rows of both planes at 2048, sums from 1536 on and those of the second plane, or of odd units,
// from 3584 on; scales where neither a unit's sums nor those stored meanwhile are. No store is
// where the next two units load.
//
// Tiles: the instructions (amx_tiles.h), or a model in a test.

#include "common/cpu/transpose_avx512-inl.h"
#include "services/expert/kernels/unroll-inl.h"

template <class Tiles>
struct Amx : Vnni {
  using V = Vnni::V;
  static constexpr const char* kTier = Tiles::kTier;
  static constexpr int64_t kScratchBytes = 1 << 20;
  static constexpr int32_t kMaxTileRows = 16;

  // Tile registers. A: rows of inputs. B: k-quads of weights. C: sums, one for each plane.
  static constexpr int kA = 0;
  static constexpr int kB = 1;
  static constexpr int kC = 2;
  static constexpr int kNumTiles = 4;

  static constexpr int64_t kRegionChunks = 4;
  static constexpr int64_t kRegionsAhead = 2;
  static constexpr int64_t kRegionGroups = kRegionChunks * kIntChunkGroups;

  static constexpr int64_t kUnitBytes = kIntGroup * kPanelOutputs;
  static_assert(kUnitBytes == kIntGroup * kMaxTileRows);  // of rows too
  static constexpr int64_t kSumBytes = kMaxTileRows * kPanelOutputs * 4;
  static constexpr int64_t kRegionBytes = kRegionGroups * kUnitBytes;  // of a panel
  // Units repeat their low 12 bits every 8. Scales of unit u are a line at 512 u, so that they too
  // stay away from stores; the lines between are those of other units.
  static constexpr int64_t kPlaceBytes = 4096;
  static constexpr int64_t kPlaceUnits = kPlaceBytes / kUnitBytes;
  static constexpr int64_t kScaleLines = kUnitBytes / 64;
  static_assert(kPlaceUnits % kRegionGroups == 0);

  // Scratch, in bytes: a ring of sums; scales of weights, weights, both [buffer][panel]; rows
  // [plane][group of rows][group of inputs, whole places]; scales of rows [group of rows][places /
  // kScaleLines][unit of a place][kScaleLines].
  static constexpr int64_t kSumsAt[2] = {1536, 3584};
  template <Precision E>
  static constexpr int64_t kScalesAt = E == Precision::kExact ? 2560 : 3072;
  static constexpr int64_t kWeightsAt = 3 * kPlaceBytes;
  static constexpr int64_t kRowsAt = kWeightsAt + 4 * kRegionBytes + 2048;
  static constexpr int64_t kMaxRowScalesGap = 1024;
  template <Precision E>
  static constexpr int64_t kRowScalesGap = kScalesAt<E> - 2048;
  static_assert(kSumBytes <= 2560 && 3072 + 2 * kPlaceBytes <= kWeightsAt && 4 <= kScaleLines);
  static_assert(4 * kRegionBytes % kPlaceBytes == 0);

  // Rows of a block from which on tiles are used; fewer go faster through the vector registers,
  // which unpack int4 for every group of four or six rows.
  template <class F>
  static constexpr int32_t kLeastTileRows = F::kFormat == PoolFormat::kInt4 ? 7 : 13;
  template <class F>
  static constexpr bool UsesTiles(int32_t num_rows) {
    return num_rows >= kLeastTileRows<F>;
  }
  template <class F>
  static constexpr int32_t GroupRows(Precision e, int32_t num_rows) {
    return UsesTiles<F>(num_rows) ? kMaxTileRows : Vnni::MaxRows(e);
  }
  // The least rows of a group of tiles: kLeastTileRows, or half of kMaxTileRows where there are
  // several.
  static constexpr int kLeastGroup = 7;
  // More rows than vector registers take are rows for tiles.
  static constexpr int Panels(Precision e, int32_t num_rows) {
    return num_rows >= kLeastGroup ? 2 : Vnni::Panels(e, num_rows);
  }
  static int32_t LargestGroup(const BlockArgs& block) {
    return block.groups.Size(block.groups.num_groups - 1);
  }

  // Bytes of a group of rows, of one plane and of the scales.
  static constexpr int64_t Regions(int64_t chunks) {
    return (chunks + kRegionChunks - 1) / kRegionChunks;
  }
  static constexpr int64_t Places(int64_t chunks) {
    return (chunks * kIntChunkGroups + kPlaceUnits - 1) / kPlaceUnits;
  }
  static constexpr int64_t PlaneBytes(int64_t chunks) { return Places(chunks) * kPlaceBytes; }
  // Transposed 16 groups of inputs at a time, two places.
  static constexpr int64_t RowScaleBytes(int64_t chunks) {
    return ((Places(chunks) + 1) / 2 * 2 + kScaleLines - 1) / kScaleLines * kPlaceBytes;
  }
  static constexpr int32_t BlockRows(Precision e, int64_t chunks) {
    const int64_t planes = e == Precision::kExact ? 2 : 1;
    const int64_t fitting = (kScratchBytes - kRunBytes - kRowsAt - kMaxRowScalesGap) /
                            (planes * PlaneBytes(chunks) + RowScaleBytes(chunks));
    return static_cast<int32_t>(
        std::clamp<int64_t>(fitting * kMaxTileRows, kMaxTileRows, kBlockRows));
  }
  static_assert(kScratchBytes - kRunBytes - kRowsAt - kMaxRowScalesGap >=
                2 * PlaneBytes(NumChunks(kMaxPackedInputs)) +
                    RowScaleBytes(NumChunks(kMaxPackedInputs)));

  static std::byte* RowsOf(const BlockArgs& block, int plane, int32_t group) {
    return block.scratch + kRowsAt +
           (plane * block.groups.num_groups + group) * PlaneBytes(block.chunks);
  }
  // Of a group of inputs; the next one's in its place are kUnitBytes on.
  template <Precision E>
  static float* RowScales(const BlockArgs& block, int32_t group, int64_t inputs) {
    constexpr int kPlanes = E == Precision::kExact ? 2 : 1;
    const int64_t place = inputs / kPlaceUnits;
    return reinterpret_cast<float*>(RowsOf(block, kPlanes, 0) + kRowScalesGap<E> +
                                    group * RowScaleBytes(block.chunks) +
                                    place / kScaleLines * kPlaceBytes + place % kScaleLines * 64 +
                                    inputs % kPlaceUnits * kUnitBytes);
  }
  static std::byte* Weights(const BlockArgs& block, int buffer) {
    return block.scratch + kWeightsAt + buffer * 2 * kRegionBytes;
  }
  template <Precision E>
  static float* Scales(const BlockArgs& block, int buffer, int panel) {
    return reinterpret_cast<float*>(block.scratch + kPlaceBytes + kScalesAt<E> +
                                    (buffer * 2 + panel) * 64);
  }
  static constexpr int64_t kScaleStride = kUnitBytes / int64_t{sizeof(float)};

  // n rows, from `at` on in each, to units.
  static void CopyRows(const std::byte* const* rows, int32_t n, int64_t at, int64_t chunks,
                       std::byte* out) {
    for (int64_t c = 0; c < chunks; ++c, at += kChunkInputs, out += 2 * kUnitBytes) {
      for (int32_t r = 0; r < n; r += 2) {
        const __m512i even = _mm512_load_si512(rows[r] + at);
        const __m512i odd = _mm512_load_si512(rows[std::min(r + 1, n - 1)] + at);
        _mm512_store_si512(out + r * kIntGroup, _mm512_shuffle_i64x2(even, odd, 0x44));
        _mm512_store_si512(out + r * kIntGroup + kUnitBytes, _mm512_shuffle_i64x2(even, odd, 0xee));
      }
    }
  }

  // All groups of rows of a block use one configuration, that of the largest, which is the last:
  // what lies behind the rows of a smaller one makes sums that are not used.
  template <class F, Precision E>
  static void Begin(const BlockArgs& block) {
    if (!UsesTiles<F>(block.groups.num_rows)) return;
    const int32_t num_rows = LargestGroup(block);
    TileConfig config;
    const auto set = [&](int tile, int rows, int row_bytes) {
      config.rows[tile] = static_cast<uint8_t>(rows);
      config.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
    };
    set(kA, num_rows, kIntGroup);
    set(kB, kIntGroup / 4, kPanelOutputs * 4);
    for (int tile = kC; tile < kNumTiles; ++tile) set(tile, num_rows, kPanelOutputs * 4);
    Tiles::Configure(config);
    for (int32_t group = 0; group < block.groups.num_groups; ++group) {
      const int32_t first = block.groups.First(group);
      const int32_t n = block.groups.Size(group);
      for (int plane = 0; plane < (E == Precision::kExact ? 2 : 1); ++plane) {
        CopyRows(block.rows + first, n, plane * block.layout->plane, block.chunks,
                 RowsOf(block, plane, group));
      }
      for (int64_t g = 0; g < block.chunks * kIntChunkGroups; g += 16) {
        __m512i t[16];
        for (int32_t r = 0; r < 16; ++r) {
          t[r] = r < n ? _mm512_load_si512(block.rows[first + r] + block.layout->scales + g * 4)
                       : _mm512_setzero_si512();
        }
        Transpose16(t);
        for (int64_t half = 0; half < 2; ++half) {
          float* const out = RowScales<E>(block, group, g + half * kPlaceUnits);
          for (int i = 0; i < 8; ++i) _mm512_store_si512(out + i * kScaleStride, t[half * 8 + i]);
        }
      }
    }
  }
  // Leaves no tile state behind, which would make every switch of threads dearer.
  template <class F, Precision E>
  static void End(const BlockArgs& block) {
    if (UsesTiles<F>(block.groups.num_rows)) Tiles::Release();
  }

  // A region of up to two panels to unpack: as signed bytes that B takes, and f32 scales.
  struct UnpackArgs {
    const std::byte* chunks[2] = {};  // of each panel
    int num_groups = 0;
    std::byte* weights = nullptr;  // as RegionArgs has them
    float* scales[2] = {};
  };
  template <class F>
  static inline __attribute__((always_inline)) void UnpackUnit(const UnpackArgs& a, int panel,
                                                               int group) {
    constexpr int kGroups = static_cast<int>(kIntChunkGroups);
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(F::kOffset));
    const std::byte* const chunk = a.chunks[panel] + group / kGroups * F::kChunkBytes;
    std::byte* const weights = a.weights + panel * kRegionBytes + group * kUnitBytes;
    for (int pair = 0; pair < 4; ++pair) {
      __m512i quads[2];
      LoadPair<F>(chunk, group % kGroups * 4 + pair, quads);
      _mm512_store_si512(weights + pair * 128, _mm512_sub_epi8(quads[0], offset));
      _mm512_store_si512(weights + pair * 128 + 64, _mm512_sub_epi8(quads[1], offset));
    }
    const auto* const scales = chunk + F::kScales + group % kGroups * kPanelOutputs * 2;
    _mm512_store_ps(a.scales[panel] + group * kScaleStride,
                    _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales))));
  }

  // A region against one group of rows.
  struct RegionArgs {
    const std::byte* x = nullptr;       // [num_groups][kUnitBytes]
    int64_t plane = 0;                  // of the second plane's x, from the first
    const float* row_scales = nullptr;  // unit g at + g * kScaleStride
    std::byte* sums = nullptr;
    const std::byte* weights = nullptr;  // [num_panels][kRegionGroups][kUnitBytes]
    const float* scales[2] = {};         // of each panel, as row_scales
    int num_panels = 0;
    int num_groups = 0;
    float* acc = nullptr;  // row r of panel p at acc + p * acc_panel + r * 16
    int64_t acc_panel = 0;
    const std::byte* ahead[2] = {};  // of each panel, to ask the memory for:
    int64_t ahead_lines = 0;         // lines with each group
    UnpackArgs unpack;               // on the way, a unit with each
  };

  template <int kPlane>
  static inline __attribute__((always_inline)) void MultiplyPlane(const std::byte* x) {
    Tiles::template Load<kA>(x, kIntGroup);
    Tiles::template Zero<kC + kPlane>();
    Tiles::template DotSS<kC + kPlane, kA, kB>();
  }
  template <Precision E>
  static inline __attribute__((always_inline)) void Multiply(const RegionArgs& a, int panel,
                                                             int group) {
    Tiles::template Load<kB>(a.weights + panel * kRegionBytes + group * kUnitBytes,
                             kPanelOutputs * 4);
    const std::byte* const x = a.x + group * kUnitBytes;
    MultiplyPlane<0>(x);
    if constexpr (E == Precision::kExact) MultiplyPlane<1>(x + a.plane);
  }
  // Of the fast precision two units' are in use at a time, which take the places of the two planes
  // in turn.
  template <Precision E, int kPlane = 0>
  static std::byte* SumsOf(const RegionArgs& a, int64_t unit) {
    const int64_t at = E == Precision::kExact ? kSumsAt[kPlane] : kSumsAt[unit & 1];
    return a.sums + ((at + unit * kUnitBytes) & (kPlaceBytes - 1));
  }

  // Sums of a unit, scaled, to accumulators.
  template <Precision E, int R>
  static inline __attribute__((always_inline)) void Scale(const RegionArgs& a, int panel, int group,
                                                          __m512 (&acc)[R]) {
    const int64_t unit = panel * a.num_groups + group;
    const std::byte* const sums = SumsOf<E>(a, unit);
    const std::byte* const low_sums = SumsOf<E, 1>(a, unit);
    const __m512 scale = _mm512_load_ps(a.scales[panel] + group * kScaleStride);
    const float* const row_scales = a.row_scales + group * kScaleStride;
    Unroll<R>([&](auto r) {
      __m512i sum = _mm512_load_si512(sums + r * kPanelOutputs * 4);
      if constexpr (E == Precision::kExact) {
        sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8),
                               _mm512_load_si512(low_sums + r * kPanelOutputs * 4));
      }
      acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                               _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r])), acc[r]);
    });
  }

  template <int R>
  static inline __attribute__((always_inline)) void BeginPanel(const RegionArgs& a, int panel,
                                                               __m512 (&acc)[R]) {
    const float* const from = a.acc + panel * a.acc_panel;
    Unroll<R>([&](auto r) { acc[r] = _mm512_load_ps(from + r * kPanelOutputs); });
  }
  template <int R>
  static inline __attribute__((always_inline)) void EndPanel(const RegionArgs& a, int panel,
                                                             const __m512 (&acc)[R]) {
    float* const to = a.acc + panel * a.acc_panel;
    Unroll<R>([&](auto r) { _mm512_store_ps(to + r * kPanelOutputs, acc[r]); });
  }

  template <class F, Precision E, int R>
  static void RegionOfRows(const RegionArgs& a, RowsAhead& rows_ahead) {
    const int last = a.num_groups - 1;
    __m512 acc[R];
    Multiply<E>(a, 0, 0);
    for (int p = 0; p < a.num_panels; ++p) {
      for (int g = 0; g < a.num_groups; ++g) {
        const int64_t unit = p * a.num_groups + g;
        Tiles::template Store<kC>(SumsOf<E>(a, unit), kPanelOutputs * 4);
        if constexpr (E == Precision::kExact) {
          Tiles::template Store<kC + 1>(SumsOf<E, 1>(a, unit), kPanelOutputs * 4);
        }
        if (g < last) {
          Multiply<E>(a, p, g + 1);
        } else if (p + 1 < a.num_panels) {
          Multiply<E>(a, p + 1, 0);
        }
        for (int64_t i = 0; i < a.ahead_lines; ++i) {
          __builtin_prefetch(a.ahead[p] + (g * a.ahead_lines + i) * 64, /*rw=*/0, /*locality=*/1);
        }
        if (g % 2 == 0) rows_ahead.Step();
        if (g < a.unpack.num_groups) UnpackUnit<F>(a.unpack, p, g);
        if constexpr (E == Precision::kExact) {
          if (g == 0) BeginPanel<R>(a, p, acc);
          Scale<E, R>(a, p, g, acc);
          if (g == last) EndPanel<R>(a, p, acc);
        } else if (g > 0) {
          Scale<E, R>(a, p, g - 1, acc);
        } else {
          if (p > 0) {
            Scale<E, R>(a, p - 1, last, acc);
            EndPanel<R>(a, p - 1, acc);
          }
          BeginPanel<R>(a, p, acc);
        }
      }
      for (int g = a.num_groups; g < a.unpack.num_groups; ++g) UnpackUnit<F>(a.unpack, p, g);
    }
    if constexpr (E == Precision::kFast) {
      Scale<E, R>(a, a.num_panels - 1, last, acc);
      EndPanel<R>(a, a.num_panels - 1, acc);
    }
  }
  template <class F, Precision E, int R = kMaxTileRows>
  static void RegionOfUpTo(const RegionArgs& a, int32_t num_rows, RowsAhead& rows_ahead) {
    if (num_rows == R) return RegionOfRows<F, E, R>(a, rows_ahead);
    if constexpr (R > kLeastGroup) RegionOfUpTo<F, E, R - 1>(a, num_rows, rows_ahead);
  }

  // Region `region` of P panels to one of the two places.
  template <class F, Precision E, int P>
  static UnpackArgs RegionToUnpack(const BlockArgs& block, const std::byte* const* panels,
                                   int64_t region, int buffer) {
    const int64_t first = region * kRegionChunks;
    UnpackArgs out;
    out.num_groups = GroupsOf(block, region);
    out.weights = Weights(block, buffer);
    for (int p = 0; p < P; ++p) {
      out.chunks[p] = panels[p] + first * F::kChunkBytes;
      out.scales[p] = Scales<E>(block, buffer, p);
    }
    return out;
  }
  static int GroupsOf(const BlockArgs& block, int64_t region) {
    return static_cast<int>(std::min(kRegionChunks, block.chunks - region * kRegionChunks) *
                            kIntChunkGroups);
  }

  template <class F, Precision E, int P>
  static bool RunPanels(const PanelsArgs& a) {
    const BlockArgs& block = a.block;
    if (!UsesTiles<F>(block.groups.num_rows)) return false;
    if constexpr (P > 2) return false;
    constexpr int64_t kStoredBytes = kRegionChunks * F::kChunkBytes;  // of a region
    const int32_t num_groups = block.groups.num_groups;
    const int64_t regions = Regions(block.chunks);
    const int64_t distance = std::min(kRegionsAhead, regions);
    if (a.cold) {
      const int64_t bytes = std::min(distance * kStoredBytes, block.chunks * F::kChunkBytes);
      for (int p = 0; p < P; ++p) {
        for (int64_t at = 0; at < bytes; at += 64) {
          __builtin_prefetch(a.tile.weights[p] + at, /*rw=*/0, /*locality=*/1);
        }
      }
    }
    if (a.state.ready != a.tile.weights[0]) {
      const UnpackArgs first = RegionToUnpack<F, E, P>(block, a.tile.weights, 0, a.state.buffer);
      for (int p = 0; p < P; ++p) {
        for (int g = 0; g < first.num_groups; ++g) UnpackUnit<F>(first, p, g);
      }
    }
    RegionArgs args;
    args.plane = RowsOf(block, 1, 0) - RowsOf(block, 0, 0);
    args.sums = block.scratch;
    args.num_panels = P;
    args.acc_panel = a.tile.acc_panel;
    for (int64_t region = 0; region < regions; ++region) {
      args.num_groups = GroupsOf(block, region);
      args.unpack = {};
      args.weights = Weights(block, a.state.buffer);
      for (int p = 0; p < P; ++p) args.scales[p] = Scales<E>(block, a.state.buffer, p);
      // Lines of the region that comes `distance` later, here or in the next panels.
      const bool here = region + distance < regions;
      const int64_t target = region + distance - (here ? 0 : regions);
      const int64_t lines =
          std::min(kStoredBytes, (block.chunks - target * kRegionChunks) * F::kChunkBytes) / 64;
      const bool ask = !a.warm && (here || a.next[0] != nullptr);
      const int64_t shares = int64_t{args.num_groups} * num_groups;
      args.ahead_lines = ask ? (lines + shares - 1) / shares : 0;
      for (int32_t group = 0; group < num_groups; ++group) {
        for (int p = 0; p < P && ask; ++p) {
          args.ahead[p] = (here ? a.tile.weights : a.next)[p] + target * kStoredBytes +
                          group * args.num_groups * args.ahead_lines * 64;
        }
        if (group + 1 == num_groups) {
          // A tile load cannot take what is still on its way to the cache: one pass ahead.
          a.state.buffer ^= 1;
          a.state.ready = nullptr;
          if (region + 1 < regions) {
            args.unpack =
                RegionToUnpack<F, E, P>(block, a.tile.weights, region + 1, a.state.buffer);
          } else if (a.next_own) {
            args.unpack = RegionToUnpack<F, E, P>(block, a.next, 0, a.state.buffer);
            a.state.ready = a.next[0];
          }
        }
        args.x = RowsOf(block, 0, group) + region * kRegionBytes;
        args.row_scales = RowScales<E>(block, group, region * kRegionGroups);
        args.acc = a.tile.acc + block.groups.First(group) * kPanelOutputs;
        RegionOfUpTo<F, E>(args, block.groups.Size(group), a.rows_ahead);
      }
    }
    return true;
  }

  // Few rows.
  template <class F, Precision E, int P>
  static void Tile(const TileArgs& a) {
    TileUpTo<F, E, P, Vnni::MaxRows(E)>(a);
  }
};
