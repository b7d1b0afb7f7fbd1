// Dot products of AVX-512 vectors for bf16 and nf4. Included inside a tier's target region and
// namespace, after packed_panels-inl.h and NF4Weights(table, absmax), which gives the 16 bf16
// weights of an nf4 block, twice; no include guard on purpose.
//
// D:  Rows (rows_bf16-inl.h, rows_f32-inl.h) with Reg, Load(step), Dot(acc, w, reg), and
//     kMaxRows, Outputs(num_rows): tiles of so many rows x outputs (4 or 8) fit the registers
//     kFusedRows: how many rows, 3 or 4, look weights up for themselves; kHalves: and twice as many
//     in two halves
//
// Order of arithmetic of a (row, output): one register of 16 sums, k ascending in steps of 32
// inputs; then the fixed reduction of Reduce4. The same for every number of rows and for both
// formats.

#include "services/expert/kernels/nf4_avx512-inl.h"
#include "services/expert/kernels/unroll-inl.h"

// out[i] = the sum of register i, each in the same order. Half as many instructions as reducing one
// register after the other, so that more of the next tile fits the schedulers meanwhile.
inline __attribute__((always_inline)) void Reduce4(__m512 a, __m512 b, __m512 c, __m512 d,
                                                   float* out) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 halves =
      _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

struct Weights {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes between outputs
  int64_t k = 0;
  bool cold = false;  // ask for them as well, 512 bytes ahead
};

// One step of 32 inputs, or of those that `mask` has.
template <class D, int R, int C, bool kMasked>
inline __attribute__((always_inline)) void Step(const std::byte* const (&x)[R],
                                                const std::byte* weights, int64_t stride,
                                                __mmask32 mask, __m512 (&acc)[R][C]) {
  typename D::Reg xs[R];
  Unroll<R>([&](auto r) { xs[r] = D::Load(x[r]); });
  Unroll<C>([&](auto c) {
    const std::byte* const at = weights + c * stride;
    const __m512i w = kMasked ? _mm512_maskz_loadu_epi16(mask, at) : _mm512_loadu_si512(at);
    Unroll<R>([&](auto r) { acc[r][c] = D::Dot(acc[r][c], w, xs[r]); });
  });
}

// out[r * kPanelOutputs + c] = dot(x[r], weights row c). kTail: k is no multiple of 32.
template <class D, int R, int C, bool kTail>
void Dots(const std::byte* const* rows, const Weights& w, Ahead& ahead, float* out) {
  const std::byte* x[R];
  Unroll<R>([&](auto r) { x[r] = rows[r]; });
  __m512 acc[R][C];
  Unroll<R>([&](auto r) { Unroll<C>([&](auto c) { acc[r][c] = _mm512_setzero_ps(); }); });
  const std::byte* weights = w.data;
  for (int64_t i = w.k / kStepInputs; i > 0; --i, weights += 64) {
    ahead.Step();
    if (w.cold) {
      Unroll<C>([&](auto c) {
        AskFor(reinterpret_cast<uintptr_t>(weights) + static_cast<uintptr_t>(c * w.stride + 512));
      });
    }
    Step<D, R, C, false>(x, weights, w.stride, 0, acc);
    Unroll<R>([&](auto r) { x[r] += D::kStepBytes; });
  }
  if constexpr (kTail) {
    // Rows are zero behind k; what lies there in the weights is not.
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (w.k % kStepInputs)) - 1);
    Step<D, R, C, true>(x, weights, w.stride, mask, acc);
  }
  Unroll<R>([&](auto r) {
    if constexpr (C == 1) {
      float sums[4];
      Reduce4(acc[r][0], acc[r][0], acc[r][0], acc[r][0], sums);
      out[r * kPanelOutputs] = sums[0];
    } else {
      Unroll<C / 4>([&](auto quarter) {
        constexpr int c = quarter * 4;
        Reduce4(acc[r][c], acc[r][c + 1], acc[r][c + 2], acc[r][c + 3],
                out + r * kPanelOutputs + c);
      });
    }
  });
}

// The first num_outputs rows of `w` against R rows.
template <class D, int R, int C>
void RowGroup(const std::byte* const* rows, Weights w, int32_t num_outputs, Ahead& ahead,
              float* out) {
  const bool tail = w.k % kStepInputs != 0;
  for (; num_outputs >= C; num_outputs -= C, w.data += C * w.stride, out += C) {
    (tail ? Dots<D, R, C, true> : Dots<D, R, C, false>)(rows, w, ahead, out);
  }
  for (; num_outputs > 0; --num_outputs, w.data += w.stride, ++out) {
    (tail ? Dots<D, R, 1, true> : Dots<D, R, 1, false>)(rows, w, ahead, out);
  }
}

using RowGroupFunction = void (*)(const std::byte* const* rows, Weights w, int32_t num_outputs,
                                  Ahead& ahead, float* out);

// How many rows of weights, a multiple of 4, take up to half of the first cache level.
constexpr int32_t OutputsInL1(int64_t stride) {
  return stride <= 1152 ? 16 : stride <= 2176 ? 8 : 4;
}

// Row-major weights against any number of rows, in groups of up to D::kMaxRows: tiles of rows x
// outputs sums, with the rows and one vector of weights in registers.
template <class D>
struct Dense {
  static constexpr int kMaxRows = D::kMaxRows;
  static constexpr int kTileOutputs = 4;  // where there are several groups

  template <int... kRows>
  static constexpr std::array<RowGroupFunction, kMaxRows> OnlyGroup(
      std::integer_sequence<int, kRows...>) {
    return {RowGroup<D, kRows + 1, D::Outputs(kRows + 1)>...};
  }
  template <int... kRows>
  static constexpr std::array<RowGroupFunction, kMaxRows> OneOfSeveral(
      std::integer_sequence<int, kRows...>) {
    return {RowGroup<D, kRows + 1, kTileOutputs>...};
  }
  static constexpr std::make_integer_sequence<int, kMaxRows> kIndices{};
  static constexpr std::array<RowGroupFunction, kMaxRows> kOnlyGroup = OnlyGroup(kIndices);
  static constexpr std::array<RowGroupFunction, kMaxRows> kOneOfSeveral = OneOfSeveral(kIndices);

  // One panel; the next one is asked for meanwhile.
  static void Panel(const PanelArgs& a, Weights w, int32_t num_outputs) {
    const int32_t n = a.num_rows;
    const int64_t steps = w.k / kStepInputs;
    if (n <= kMaxRows && num_outputs > kTileOutputs) {
      const int32_t outputs = D::Outputs(n);
      const int32_t tiles = (num_outputs + outputs - 1) / outputs;
      Ahead ahead(a.next[0], a.panel_bytes, tiles * steps);
      kOnlyGroup[static_cast<size_t>(n - 1)](a.rows, w, num_outputs, ahead, a.acc);
      return;
    }
    // Some outputs stay in the first cache level while the rows pass.
    const int32_t together = OutputsInL1(w.stride);
    const int32_t groups = (n + kMaxRows - 1) / kMaxRows;
    const int32_t tiles = (num_outputs + kTileOutputs - 1) / kTileOutputs;
    Ahead ahead(a.next[0], a.panel_bytes, int64_t{tiles} * groups * steps);
    const bool cold = w.cold;
    for (int32_t o = 0; o < num_outputs; o += together, w.data += together * w.stride) {
      const int32_t outputs = std::min(together, num_outputs - o);
      int32_t first = 0;
      for (int32_t g = 0; g < groups; ++g) {
        const auto last = static_cast<int32_t>(int64_t{n} * (g + 1) / groups);
        w.cold = cold && g == 0;
        kOneOfSeveral[static_cast<size_t>(last - first - 1)](a.rows + first, w, outputs, ahead,
                                                             a.acc + first * kPanelOutputs + o);
        first = last;
      }
    }
  }
};

// C outputs of one nf4 chunk, from output `first` on, against R rows without a detour through
// memory. `decoded`: where their weights are left as well, `stride` bytes apart, or nothing if
// !kKeep.
template <class D, int R, int C, bool kKeep>
inline __attribute__((always_inline)) void FusedChunk(__m512 table, const std::byte* chunk,
                                                      int first, const std::byte* const (&rows)[R],
                                                      int64_t i, std::byte* decoded, int64_t stride,
                                                      __m512 (&acc)[R][C]) {
  typename D::Reg x[R][2];
  Unroll<R>([&](auto r) {
    x[r][0] = D::Load(rows[r] + 2 * i * D::kStepBytes);
    x[r][1] = D::Load(rows[r] + (2 * i + 1) * D::kStepBytes);
  });
  Unroll<C / 2>([&](auto pair) {
    constexpr int c = pair * 2;
    __m512i w[4];
    NF4Pair(table, chunk, first / 2 + pair, w);
    if constexpr (kKeep) {
      std::byte* const out = decoded + c * stride + i * 128;
      _mm512_store_si512(out, w[0]);
      _mm512_store_si512(out + 64, w[1]);
      _mm512_store_si512(out + stride, w[2]);
      _mm512_store_si512(out + stride + 64, w[3]);
    }
    Unroll<R>([&](auto r) {
      acc[r][c] = D::Dot(acc[r][c], w[0], x[r][0]);
      acc[r][c] = D::Dot(acc[r][c], w[1], x[r][1]);
      acc[r][c + 1] = D::Dot(acc[r][c + 1], w[2], x[r][0]);
      acc[r][c + 1] = D::Dot(acc[r][c + 1], w[3], x[r][1]);
    });
  });
}

// Chunks [first, end) of a panel against R rows, the sums of kPanelOutputs / C passes of C outputs
// kept in `sums` [R][kPanelOutputs] between calls. `ahead`: where to ask for as many chunks, or
// null.
template <class D, int R, int C>
void FusedChunks(const PanelArgs& a, int64_t first, int64_t end, const std::byte* ahead,
                 __m512* sums) {
  constexpr int kPasses = static_cast<int>(kPanelOutputs) / C;
  constexpr int64_t kLines = kNF4ChunkBytes / 64;
  const __m512 table = _mm512_loadu_ps(kNF4Table);
  const std::byte* rows[R];
  Unroll<R>([&](auto r) { rows[r] = a.rows[r]; });
  for (int pass = 0; pass < kPasses; ++pass) {
    __m512 acc[R][C];
    __m512* const kept = sums + pass * C;
    Unroll<R>([&](auto r) {
      Unroll<C>([&](auto c) {
        acc[r][c] = first == 0 ? _mm512_setzero_ps() : kept[r * kPanelOutputs + c];
      });
    });
    for (int64_t i = first; i < end; ++i) {
      if (ahead != nullptr) {
        const auto at = reinterpret_cast<uintptr_t>(ahead + (i - first) * kNF4ChunkBytes);
        for (int64_t line = kLines * pass / kPasses; line < kLines * (pass + 1) / kPasses; ++line) {
          AskFor(at + static_cast<uintptr_t>(line * 64));
        }
      }
      FusedChunk<D, R, C, false>(table, a.weights[0] + i * kNF4ChunkBytes, pass * C, rows, i,
                                 nullptr, 0, acc);
    }
    Unroll<R>([&](auto r) { Unroll<C>([&](auto c) { kept[r * kPanelOutputs + c] = acc[r][c]; }); });
  }
}

// Chunks that the passes of FusedChunks share, and the distance of asking ahead: 9 KiB. One row,
// two Zen 4 threads at 47 GB/s: 32.3 GB/s at half of it.
constexpr int64_t kRegionChunks = 16;

template <class D, int R, int C>
void FusedPanel(const PanelArgs& a) {
  __m512 sums[R * kPanelOutputs];
  const int64_t chunks = NumChunks(a.k);
  for (int64_t first = 0; first < chunks;) {
    // One pass: all up to where asking ahead leaves the panel.
    const int64_t rest = chunks - first;
    const int64_t end = C == kPanelOutputs && rest > kRegionChunks
                            ? chunks - kRegionChunks
                            : first + std::min(rest, kRegionChunks);
    const int64_t ahead = first + kRegionChunks;
    const std::byte* from = a.next[0];
    if (ahead < chunks) from = a.warm ? nullptr : a.weights[0] + ahead * kNF4ChunkBytes;
    FusedChunks<D, R, C>(a, first, end, from, sums);
    first = end;
  }
  for (int r = 0; r < R; ++r) {
    for (int64_t c = 0; c < kPanelOutputs; c += 4) {
      const __m512* const four = sums + r * kPanelOutputs + c;
      Reduce4(four[0], four[1], four[2], four[3], a.acc + r * kPanelOutputs + c);
    }
  }
}

// Decoded rows are a line more than a power of two apart, so that a tile of them does not fall
// into one set of the cache.
constexpr int64_t DecodedStride(int64_t k) { return PaddedInputs(k) * 2 + 64; }

// Outputs [first, first + 4) of a panel against the first R rows; their weights are left in
// `decoded` for the others.
template <class D, int R>
void FusedAndKept(const PanelArgs& a, int first, std::byte* decoded) {
  const __m512 table = _mm512_loadu_ps(kNF4Table);
  const int64_t stride = DecodedStride(a.k);
  const std::byte* rows[R];
  Unroll<R>([&](auto r) { rows[r] = a.rows[r]; });
  __m512 acc[R][4];
  Unroll<R>([&](auto r) { Unroll<4>([&](auto c) { acc[r][c] = _mm512_setzero_ps(); }); });
  const bool ask = a.cold && first == 0;
  for (int64_t i = 0; i < NumChunks(a.k); ++i) {
    const std::byte* const chunk = a.weights[0] + i * kNF4ChunkBytes;
    for (int64_t line = 0; line < kNF4ChunkBytes && ask; line += 64) {
      AskFor(reinterpret_cast<uintptr_t>(chunk) + static_cast<uintptr_t>(2048 + line));
    }
    FusedChunk<D, R, 4, true>(table, chunk, first, rows, i, decoded, stride, acc);
  }
  Unroll<R>([&](auto r) {
    Reduce4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], a.acc + r * kPanelOutputs + first);
  });
}

// T of packed_panels-inl.h but for its name.
template <class D>
struct VectorTier {
  using Rows = D;
  static constexpr int kPanels = 1;
  static constexpr bool kTiledHidden = false;
  static int32_t HiddenRows(int32_t num_rows) { return SameNumber(num_rows); }
  static constexpr int64_t kTileScratchBytes = 4 * DecodedStride(kMaxPackedInputs);
  static int32_t BlockRows(int64_t) { return kBlockRows; }
  static void BeginRows(const PanelArgs&) {}
  static void EndRows() {}
  static int64_t RowSteps(int32_t, int64_t) { return 1; }

  template <class F>
  static void Panels(const PanelArgs& a) {
    a.rows_ahead->Step();
    if constexpr (F::kFormat == PoolFormat::kBF16) {
      Dense<D>::Panel(a, {.data = a.weights[0], .stride = a.k * 2, .k = a.k, .cold = a.cold},
                      a.num_outputs[0]);
    } else {
      NF4Panel(a);
    }
  }

  // Few rows look weights up for themselves. Of many the first ones do, four outputs at a time, and
  // leave their weights in the first cache level to the others. Between the two it is two halves.
  static void NF4Panel(const PanelArgs& a) {
    constexpr int kFused = D::kFusedRows;
    if (a.num_rows <= kFused) return Fused(a);
    const bool halves = D::kHalves && a.num_rows < 2 * kFused;
    const int32_t n = halves ? (a.num_rows + 1) / 2 : kFused;
    PanelArgs rest = a;
    rest.rows += n;
    rest.num_rows -= n;
    rest.acc += n * kPanelOutputs;
    if (halves) {
      PanelArgs first = a;
      first.num_rows = n;
      first.next[0] = nullptr;
      Fused(first);
      rest.warm = true;
      return Fused(rest);
    }
    const int64_t stride = DecodedStride(a.k);
    const int32_t together = OutputsInL1(stride);
    rest.panel_bytes = a.panel_bytes * together / kPanelOutputs;
    for (int32_t o = 0; o < kPanelOutputs; o += together) {
      for (int32_t i = 0; i < together; i += 4) {
        FusedAndKept<D, kFused>(a, o + i, a.scratch + i * stride);
      }
      Dense<D>::Panel(rest, {.data = a.scratch, .stride = stride, .k = PaddedInputs(a.k)},
                      together);
      rest.acc += together;
      if (rest.next[0] != nullptr) rest.next[0] += rest.panel_bytes;
    }
  }

  static void Fused(const PanelArgs& a) {
    switch (a.num_rows) {
      case 1:
        return FusedPanel<D, 1, 16>(a);
      case 2:
        return FusedPanel<D, 2, 8>(a);
      case 3:
        return FusedPanel<D, 3, 4>(a);
      default:
        return FusedPanel<D, D::kFusedRows, 4>(a);
    }
  }
};

// D for rows whose steps take two registers.
template <class StepRows>
struct TwoRegisterDots : StepRows {
  // Rows x outputs + 2 x rows + 2 <= 32.
  static constexpr int kMaxRows = 5;
  static constexpr int Outputs(int num_rows) { return num_rows <= 2 ? 8 : 4; }
  static constexpr int kFusedRows = 3;
  static constexpr bool kHalves = false;
};
