// The integer formats with AMX tiles: up to 16 rows x 16 outputs x 32 inputs an instruction, the
// sums of each group scaled in AVX-512. Included inside the region and namespace of its tier, after
// packed_int_vnni-inl.h; no include guard on purpose.
//
// Tiles: the instructions, or a model of them in a test (static; indices are template arguments):
//   kTier
//   Configure(config), Release()
//   Load<tile>(base, stride), Store<tile>(base, stride), Zero<tile>()
//   DotSU<c, a, b>(): c += a (signed bytes) * b (unsigned bytes), TDPBSUD

// The operand of LDTILECFG for palette 1: eight tiles of up to 16 rows of up to 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

template <class Tiles>
struct Amx : Vnni {
  using V = Vnni::V;
  static constexpr const char* kTier = Tiles::kTier;
  static constexpr int64_t kScratchBytes = 1 << 20;
  static constexpr int32_t kMaxTileRows = 16;

  // Tile registers. A: rows of inputs, one a plane. B: k-quads of weights, one a panel. C: sums,
  // one for each panel and plane.
  static constexpr int kA = 0;
  static constexpr int kB = 2;
  static constexpr int kC = 4;

  // Groups whose sums are scaled together: an accumulator is loaded and stored once for them.
  static constexpr int kBatchGroups = 4;
  static constexpr int64_t kGroupBytes = kIntGroup * kPanelOutputs;  // of unpacked weights
  static constexpr int64_t kSumBytes = kMaxTileRows * kPanelOutputs * 4;
  // Sums [2 batches][2 panels][2 planes][kBatchGroups], then weights [2 groups][2 panels].
  static constexpr int64_t kBatchBytes = 4 * kBatchGroups * kSumBytes;
  static constexpr int64_t kTileScratchBytes = 2 * kBatchBytes + 4 * kGroupBytes;

  static constexpr int32_t MaxRows(Precision) { return kMaxTileRows; }
  // Fewer rows go faster through the vector registers.
  static constexpr bool UsesTiles(Precision e, int32_t num_rows) {
    return num_rows > Vnni::MaxRows(e);
  }
  static constexpr int Panels(Precision e, int32_t num_rows) {
    return UsesTiles(e, num_rows) ? 2 : Vnni::Panels(e, num_rows);
  }
  static constexpr bool UniformRows(Precision e, int32_t num_rows) {
    return UsesTiles(e, num_rows);
  }

  // All groups of rows of a block use one configuration, that of the largest, which is the last:
  // a smaller one is followed in memory by a row of the next, whose sums are not used.
  static void Begin(Precision e, int32_t num_rows) {
    if (!UsesTiles(e, num_rows)) return;
    TileConfig config;
    const auto set = [&](int tile, int rows, int row_bytes) {
      config.rows[tile] = static_cast<uint8_t>(rows);
      config.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
    };
    for (int tile = kA; tile < kB; ++tile) set(tile, num_rows, kIntGroup);
    for (int tile = kB; tile < kC; ++tile) set(tile, kIntGroup / 4, kPanelOutputs * 4);
    for (int tile = kC; tile < 8; ++tile) set(tile, num_rows, kPanelOutputs * 4);
    Tiles::Configure(config);
  }
  // Leaves no tile state behind, which would make every switch of threads dearer.
  static void End(Precision e, int32_t num_rows) {
    if (UsesTiles(e, num_rows)) Tiles::Release();
  }

  // The weights of a group as B wants them: eight rows of 64 bytes.
  template <class F>
  static const std::byte* Weights(const std::byte* chunk, int g, std::byte* scratch) {
    if constexpr (F::kFormat == PoolFormat::kInt8) {
      return chunk + g * kGroupBytes;
    } else {
      for (int pair = 0; pair < 4; ++pair) {
        __m512i quads[2];
        LoadPair<F>(chunk, g * 4 + pair, quads);
        _mm512_store_si512(scratch + pair * 128, quads[0]);
        _mm512_store_si512(scratch + pair * 128 + 64, quads[1]);
      }
      return scratch;
    }
  }

  // Where the sums of panel p, plane and group i of a batch stand.
  static constexpr int64_t SumsAt(int p, int plane, int i) {
    return ((p * 2 + plane) * kBatchGroups + i) * kSumBytes;
  }

  // Integer sums of one group into group i of a batch.
  template <class F, Precision E, int P>
  static inline __attribute__((always_inline)) void Multiply(const TileArgs& a, int64_t stride,
                                                             int64_t c, int g, std::byte* weights,
                                                             std::byte* sums, int i) {
    const int64_t group = (a.first_chunk + c) * kIntChunkGroups + g;
    const std::byte* const x = a.rows[0] + group * kIntGroup;
    Tiles::template Load<kA>(x, stride);
    if constexpr (E == Precision::kExact) {
      Tiles::template Load<kA + 1>(x + a.layout->plane, stride);
    }
    MultiplyPanel<F, E, 0>(a, c, g, weights, sums, i);
    if constexpr (P == 2) MultiplyPanel<F, E, 1>(a, c, g, weights + kGroupBytes, sums, i);
  }

  template <class F, Precision E, int p>
  static inline __attribute__((always_inline)) void MultiplyPanel(const TileArgs& a, int64_t c,
                                                                  int g, std::byte* weights,
                                                                  std::byte* sums, int i) {
    Tiles::template Load<kB + p>(Weights<F>(a.weights[p] + c * F::kChunkBytes, g, weights), 64);
    MultiplyPlane<p, 0>(sums, i);
    if constexpr (E == Precision::kExact) MultiplyPlane<p, 1>(sums, i);
  }

  template <int p, int plane>
  static inline __attribute__((always_inline)) void MultiplyPlane(std::byte* sums, int i) {
    constexpr int kSum = kC + p * 2 + plane;
    Tiles::template Zero<kSum>();
    Tiles::template DotSU<kSum, kA + plane, kB + p>();
    Tiles::template Store<kSum>(sums + SumsAt(p, plane, i), kPanelOutputs * 4);
  }

  // A batch whose sums are complete: num_groups groups from group g of the tile's on.
  struct Batch {
    int64_t first_group = 0;
    int num_groups = 0;
    const std::byte* sums = nullptr;
  };

  // Scales the sums of rows [first, end) into their accumulators.
  template <class F, Precision E, int P>
  static inline __attribute__((always_inline)) void Scale(const TileArgs& a, const Batch& batch,
                                                          int32_t first, int32_t end) {
    if (first == end || batch.num_groups == 0) return;
    const int64_t row_group = a.first_chunk * kIntChunkGroups + batch.first_group;
    for (int p = 0; p < P; ++p) {
      __m512 scales[kBatchGroups];
      for (int i = 0; i < kBatchGroups; ++i) {
        // Beyond a short batch: its last group again, not used.
        const int64_t group = batch.first_group + std::min(i, batch.num_groups - 1);
        const std::byte* const at = a.weights[p] + group / kIntChunkGroups * F::kChunkBytes +
                                    F::kScales + group % kIntChunkGroups * kPanelOutputs * 2;
        scales[i] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
      }
      for (int32_t r = first; r < end; ++r) {
        float* const out = a.acc + p * a.acc_panel + r * kPanelOutputs;
        const std::byte* const row_scales = a.rows[r] + a.layout->scales + row_group * 4;
        const std::byte* const corrections = a.rows[r] + a.layout->corrections + row_group * 4;
        __m512 acc = _mm512_load_ps(out);
        const auto add = [&](int i) __attribute__((always_inline)) {
          const std::byte* const at = batch.sums + SumsAt(p, 0, i) + r * kPanelOutputs * 4;
          __m512i sum = _mm512_load_si512(at);
          if constexpr (E == Precision::kExact) {
            sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8),
                                   _mm512_load_si512(at + SumsAt(0, 1, 0)));
          }
          sum = _mm512_add_epi32(sum, Broadcast32(corrections + i * 4));
          acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                _mm512_mul_ps(scales[i], BroadcastFloat(row_scales + i * 4)), acc);
        };
        if (batch.num_groups == kBatchGroups) {
          for (int i = 0; i < kBatchGroups; ++i) add(i);
        } else {
          for (int i = 0; i < batch.num_groups; ++i) add(i);
        }
        _mm512_store_ps(out, acc);
      }
    }
  }

  // Multiplies a batch while the one before is scaled, a share of the rows after each group.
  template <class F, Precision E, int P>
  static void TileOfTiles(const TileArgs& a) {
    const int64_t stride = a.rows[1] - a.rows[0];
    std::byte* const weights = a.scratch + 2 * kBatchBytes;
    Ahead<P, static_cast<int>(kIntChunkGroups)> ahead(a);
    Batch done;
    const int64_t groups = a.num_chunks * kIntChunkGroups;
    for (int64_t first = 0; first < groups; first += kBatchGroups) {
      Batch batch;
      batch.first_group = first;
      batch.num_groups = static_cast<int>(std::min<int64_t>(kBatchGroups, groups - first));
      std::byte* const sums = a.scratch + first / kBatchGroups % 2 * kBatchBytes;
      batch.sums = sums;
      for (int i = 0; i < batch.num_groups; ++i) {
        ahead.Step();
        const int64_t group = first + i;
        Multiply<F, E, P>(a, stride, group / kIntChunkGroups,
                          static_cast<int>(group % kIntChunkGroups),
                          weights + group % 2 * 2 * kGroupBytes, sums, i);
        Scale<F, E, P>(a, done, a.num_rows * i / batch.num_groups,
                       a.num_rows * (i + 1) / batch.num_groups);
      }
      done = batch;
    }
    Scale<F, E, P>(a, done, 0, a.num_rows);
  }

  template <class F, Precision E, int P>
  static void Tile(const TileArgs& a) {
    if (!UsesTiles(E, a.num_rows)) return TileUpTo<F, E, P, Vnni::MaxRows(E)>(a);
    if constexpr (P <= 2) TileOfTiles<F, E, P>(a);
  }
};
