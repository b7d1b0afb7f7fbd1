// The integer formats with AMX tiles: up to 16 rows x 16 outputs x 32 inputs an instruction, the
// sums of each group scaled in AVX-512. Included inside the region and namespace of its tier, after
// packed_int_vnni-inl.h; no include guard on purpose; the includer has included amx_tiles.h and
// <utility>.
//
// Two panels are worked through in regions of kRegionChunks chunks, whose weights are unpacked to
// signed bytes and whose scales to f32 once for all groups of rows, one pass before they are used;
// both then come from the first cache level. A region against one group of rows is a chain of units
// (panel, group of 32 inputs): the tiles of one unit multiply while the sums of the one before are
// scaled into accumulators in registers.
//
// On a Xeon (model 207) whose threads share cores with others, ns for a unit of 16 rows, exact and
// fast: multiplying and storing alone 31 and 16, scaling alone 18 and 11, as here 43 to 48 and 25.
// All eight tile registers in use make it slower (68 to 85 ns exact): little is left to rename
// them with. Sums of units that are in flight together lie in 4 KiB: that far apart they could be
// mistaken for each other.
//
// Tiles: the instructions (amx_tiles.h), or a model in a test.

#include "services/expert/kernels/transpose_avx512-inl.h"
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

  // Scratch: sums [2 units][2 planes][16 rows][16 outputs], twice the units of a region: weights,
  // then scales.
  static constexpr int64_t kUnitBytes = kIntGroup * kPanelOutputs;
  static constexpr int64_t kSumBytes = kMaxTileRows * kPanelOutputs * 4;
  static constexpr int64_t kWeightsAt = 4 * kSumBytes;
  static constexpr int64_t kScalesAt = 2 * kRegionGroups * kUnitBytes;  // from the weights
  static constexpr int64_t kRegionBytes = kScalesAt + 2 * kRegionGroups * kPanelOutputs * 4;
  static constexpr int64_t kTileScratchBytes = kWeightsAt + 2 * kRegionBytes;

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
  template <class F>
  static constexpr bool UniformRows(Precision, int32_t num_rows) {
    return UsesTiles<F>(num_rows);
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

  // Scales of rows as Begin leaves them: [group of rows][group of inputs][16 rows].
  static constexpr int64_t ScaleGroups(int64_t chunks) {
    return (chunks * kIntChunkGroups + 15) / 16 * 16;
  }
  // Of each row of a block: groups are half full where there are several, and one fits anyway.
  static constexpr int64_t BlockRowBytes(Precision, int64_t chunks) {
    return 2 * ScaleGroups(chunks) * int64_t{sizeof(float)};
  }
  static float* RowScales(const BlockArgs& block, int32_t group) {
    return reinterpret_cast<float*>(block.end_of_rows) +
           group * ScaleGroups(block.chunks) * kMaxTileRows;
  }

  // All groups of rows of a block use one configuration, that of the largest, which is the last:
  // a smaller one is followed in memory by a row of the next, whose sums are not used.
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
      float* out = RowScales(block, group);
      for (int64_t g = 0; g < block.chunks * kIntChunkGroups; g += 16, out += 16 * kMaxTileRows) {
        __m512i t[16];
        for (int32_t r = 0; r < 16; ++r) {
          t[r] = r < n ? _mm512_load_si512(block.rows[first + r] + block.layout->scales + g * 4)
                       : _mm512_setzero_si512();
        }
        Transpose16(t);
        for (int i = 0; i < 16; ++i) _mm512_store_si512(out + i * kMaxTileRows, t[i]);
      }
    }
  }
  // Leaves no tile state behind, which would make every switch of threads dearer.
  template <class F, Precision E>
  static void End(const BlockArgs& block) {
    if (UsesTiles<F>(block.groups.num_rows)) Tiles::Release();
  }

  // Units of a panel's chunks [0, num_chunks), as signed bytes that B takes and f32.
  template <class F>
  static void Unpack(const std::byte* chunk, int64_t num_chunks, std::byte* weights,
                     float* scales) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(F::kOffset));
    for (int64_t c = 0; c < num_chunks; ++c, chunk += F::kChunkBytes) {
      for (int pair = 0; pair < 8; ++pair, weights += 128) {
        __m512i quads[2];
        LoadPair<F>(chunk, pair, quads);
        _mm512_store_si512(weights, _mm512_sub_epi8(quads[0], offset));
        _mm512_store_si512(weights + 64, _mm512_sub_epi8(quads[1], offset));
      }
      for (int64_t g = 0; g < kIntChunkGroups; ++g, scales += kPanelOutputs) {
        const auto* at = chunk + F::kScales + g * kPanelOutputs * 2;
        _mm512_store_ps(scales,
                        _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(at))));
      }
    }
  }

  // A region against one group of rows.
  struct RegionArgs {
    const std::byte* x = nullptr;  // of the first row, where the region's first group stands
    int64_t stride = 0;
    int64_t plane = 0;
    const float* row_scales = nullptr;  // [num_groups][16]
    std::byte* sums = nullptr;
    const std::byte* weights = nullptr;  // [num_panels][num_groups][kUnitBytes]
    const float* scales = nullptr;       // [num_panels][num_groups][16]
    int num_panels = 0;
    int num_groups = 0;
    float* acc = nullptr;  // row r of panel p at acc + p * acc_panel + r * 16
    int64_t acc_panel = 0;
    const std::byte* ahead[2] = {};  // of each panel, to ask the memory for:
    int64_t ahead_lines = 0;         // lines with each group
  };

  template <int kPlane>
  static inline __attribute__((always_inline)) void MultiplyPlane(const std::byte* x,
                                                                  int64_t stride) {
    Tiles::template Load<kA>(x, stride);
    Tiles::template Zero<kC + kPlane>();
    Tiles::template DotSS<kC + kPlane, kA, kB>();
  }
  template <Precision E>
  static inline __attribute__((always_inline)) void Multiply(const RegionArgs& a, int unit,
                                                             int group) {
    Tiles::template Load<kB>(a.weights + unit * kUnitBytes, kPanelOutputs * 4);
    const std::byte* const x = a.x + group * kIntGroup;
    MultiplyPlane<0>(x, a.stride);
    if constexpr (E == Precision::kExact) MultiplyPlane<1>(x + a.plane, a.stride);
  }
  template <Precision E>
  static inline __attribute__((always_inline)) void StoreSums(std::byte* sums) {
    Tiles::template Store<kC>(sums, kPanelOutputs * 4);
    if constexpr (E == Precision::kExact) {
      Tiles::template Store<kC + 1>(sums + kSumBytes, kPanelOutputs * 4);
    }
  }

  template <Precision E, int R>
  static void RegionOfRows(const RegionArgs& a, RowsAhead& rows_ahead) {
    const int units = a.num_panels * a.num_groups;
    const auto sums = [&](int unit) { return a.sums + unit % 2 * 2 * kSumBytes; };
    Multiply<E>(a, 0, 0);
    int unit = 0;
    int next_group = a.num_groups > 1 ? 1 : 0;  // of the unit that multiplies next
    for (int p = 0; p < a.num_panels; ++p) {
      float* const out = a.acc + p * a.acc_panel;
      __m512 acc[R];
      Unroll<R>([&](auto r) { acc[r] = _mm512_load_ps(out + r * kPanelOutputs); });
      for (int g = 0; g < a.num_groups; ++g, ++unit) {
        StoreSums<E>(sums(unit));
        if (unit + 1 < units) {
          Multiply<E>(a, unit + 1, next_group);
          next_group = next_group + 1 == a.num_groups ? 0 : next_group + 1;
        }
        for (int64_t i = 0; i < a.ahead_lines; ++i) {
          __builtin_prefetch(a.ahead[p] + (g * a.ahead_lines + i) * 64, /*rw=*/0, /*locality=*/1);
        }
        if (g % 2 == 0) rows_ahead.Step();
        const std::byte* const at = sums(unit);
        const __m512 scale = _mm512_load_ps(a.scales + unit * kPanelOutputs);
        const float* const row_scales = a.row_scales + g * kMaxTileRows;
        Unroll<R>([&](auto r) {
          __m512i sum = _mm512_load_si512(at + r * kPanelOutputs * 4);
          if constexpr (E == Precision::kExact) {
            sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8),
                                   _mm512_load_si512(at + kSumBytes + r * kPanelOutputs * 4));
          }
          acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                   _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r])), acc[r]);
        });
      }
      Unroll<R>([&](auto r) { _mm512_store_ps(out + r * kPanelOutputs, acc[r]); });
    }
  }
  template <Precision E, int R = kMaxTileRows>
  static void RegionOfUpTo(const RegionArgs& a, int32_t num_rows, RowsAhead& rows_ahead) {
    if (num_rows == R) return RegionOfRows<E, R>(a, rows_ahead);
    if constexpr (R > kLeastGroup) RegionOfUpTo<E, R - 1>(a, num_rows, rows_ahead);
  }

  // Region `region` of P panels to one of the two places.
  template <class F, int P>
  static void UnpackRegion(const BlockArgs& block, const std::byte* const* panels, int64_t region,
                           int buffer) {
    std::byte* const out = block.scratch + kWeightsAt + buffer * kRegionBytes;
    const int64_t first = region * kRegionChunks;
    const int64_t num_chunks = std::min(kRegionChunks, block.chunks - first);
    for (int p = 0; p < P; ++p) {
      const int64_t unit = p * num_chunks * kIntChunkGroups;
      Unpack<F>(panels[p] + first * F::kChunkBytes, num_chunks, out + unit * kUnitBytes,
                reinterpret_cast<float*>(out + kScalesAt) + unit * kPanelOutputs);
    }
  }

  template <class F, Precision E, int P>
  static bool RunPanels(const PanelsArgs& a) {
    const BlockArgs& block = a.block;
    if (!UsesTiles<F>(block.groups.num_rows)) return false;
    if constexpr (P > 2) return false;
    constexpr int64_t kStoredBytes = kRegionChunks * F::kChunkBytes;  // of a region
    const int32_t num_groups = block.groups.num_groups;
    const int64_t regions = (block.chunks + kRegionChunks - 1) / kRegionChunks;
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
      UnpackRegion<F, P>(block, a.tile.weights, 0, a.state.buffer);
    }
    RegionArgs args;
    args.stride = block.rows[1] - block.rows[0];
    args.plane = block.layout->plane;
    args.sums = block.scratch;
    args.num_panels = P;
    args.acc_panel = a.tile.acc_panel;
    for (int64_t region = 0; region < regions; ++region) {
      const int64_t first = region * kRegionChunks;
      args.num_groups =
          static_cast<int>(std::min(kRegionChunks, block.chunks - first) * kIntChunkGroups);
      args.weights = block.scratch + kWeightsAt + a.state.buffer * kRegionBytes;
      args.scales = reinterpret_cast<const float*>(args.weights + kScalesAt);
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
            UnpackRegion<F, P>(block, a.tile.weights, region + 1, a.state.buffer);
          } else if (a.next_own) {
            UnpackRegion<F, P>(block, a.next, 0, a.state.buffer);
            a.state.ready = a.next[0];
          }
        }
        args.x = block.rows[block.groups.First(group)] + first * kChunkInputs;
        args.row_scales = RowScales(block, group) + first * kIntChunkGroups * kMaxTileRows;
        args.acc = a.tile.acc + block.groups.First(group) * kPanelOutputs;
        RegionOfUpTo<E>(args, block.groups.Size(group), a.rows_ahead);
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
