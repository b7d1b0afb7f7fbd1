// bf16 and nf4 at kFast with VDPBF16PS, where AVX512_BF16 exists: the tier avx512_vnni stands for
// such machines.
//
// Order of arithmetic of a (row, output): one register of 16 sums, k ascending in steps of 32
// inputs, two to a sum; then the fixed reduction of V::Reduce4. The same for every number of rows
// and both formats.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace banyan::expert {
namespace {
namespace avx512_bf16 {

#include "services/expert/kernels/packed_bf16-inl.h"

// f(0), ..., f(N - 1) with indices that are constants: arrays of registers indexed in loops are
// kept in memory by GCC 12 around the loop that follows (a Dots call of 16 steps: 600 cycles, not
// 450).
template <class F, int... kIndices>
inline __attribute__((always_inline)) void UnrollIndices(F f,
                                                         std::integer_sequence<int, kIndices...>) {
  (f(std::integral_constant<int, kIndices>{}), ...);
}
template <int N, class F>
inline __attribute__((always_inline)) void Unroll(F f) {
  UnrollIndices(f, std::make_integer_sequence<int, N>{});
}

// Row-major weights against up to kMaxRows rows: tiles of rows x outputs sums, with the rows and
// one vector of weights in registers.
constexpr int kMaxRows = 6;
constexpr int Outputs(int rows) { return rows <= 3 ? 8 : 4; }

struct Weights {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes between outputs
  int64_t k = 0;
  bool cold = false;  // ask for them as well, 512 bytes ahead
};

// One step of 32 inputs, or of those that `mask` has.
template <int R, int C, bool kMasked>
inline __attribute__((always_inline)) void Step(const std::byte* const (&x)[R],
                                                const std::byte* weights, int64_t stride,
                                                __mmask32 mask, __m512 (&acc)[R][C]) {
  __m512i xs[R];
  Unroll<R>([&](auto r) { xs[r] = _mm512_load_si512(x[r]); });
  Unroll<C>([&](auto c) {
    const std::byte* const at = weights + c * stride;
    const __m512i w = kMasked ? _mm512_maskz_loadu_epi16(mask, at) : _mm512_loadu_si512(at);
    Unroll<R>([&](auto r) { acc[r][c] = DotBF16(acc[r][c], w, xs[r]); });
  });
}

// out[r * kPanelOutputs + c] = dot(x[r], weights row c). kTail: k is no multiple of 32.
template <int R, int C, bool kTail>
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
    Step<R, C, false>(x, weights, w.stride, 0, acc);
    Unroll<R>([&](auto r) { x[r] += 64; });
  }
  if constexpr (kTail) {
    // Rows are zero behind k; what lies there in the weights is not.
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (w.k % kStepInputs)) - 1);
    Step<R, C, true>(x, weights, w.stride, mask, acc);
  }
  Unroll<R>([&](auto r) {
    if constexpr (C == 1) {
      float sums[4];
      V::Reduce4(acc[r][0], acc[r][0], acc[r][0], acc[r][0], sums);
      out[r * kPanelOutputs] = sums[0];
    } else {
      Unroll<C / 4>([&](auto quarter) {
        constexpr int c = quarter * 4;
        V::Reduce4(acc[r][c], acc[r][c + 1], acc[r][c + 2], acc[r][c + 3],
                   out + r * kPanelOutputs + c);
      });
    }
  });
}

// The first num_outputs rows of `w` against R rows.
template <int R, int C>
void RowGroup(const std::byte* const* rows, Weights w, int32_t num_outputs, Ahead& ahead,
              float* out) {
  const bool tail = w.k % kStepInputs != 0;
  for (; num_outputs >= C; num_outputs -= C, w.data += C * w.stride, out += C) {
    (tail ? Dots<R, C, true> : Dots<R, C, false>)(rows, w, ahead, out);
  }
  for (; num_outputs > 0; --num_outputs, w.data += w.stride, ++out) {
    (tail ? Dots<R, 1, true> : Dots<R, 1, false>)(rows, w, ahead, out);
  }
}

using RowGroupFunction = void (*)(const std::byte* const* rows, Weights w, int32_t num_outputs,
                                  Ahead& ahead, float* out);
constexpr int kTogether = 4;  // outputs
constexpr RowGroupFunction kOnlyGroup[kMaxRows] = {
    RowGroup<1, Outputs(1)>, RowGroup<2, Outputs(2)>, RowGroup<3, Outputs(3)>,
    RowGroup<4, Outputs(4)>, RowGroup<5, Outputs(5)>, RowGroup<6, Outputs(6)>};
constexpr RowGroupFunction kOneOfSeveral[kMaxRows] = {
    RowGroup<1, kTogether>, RowGroup<2, kTogether>, RowGroup<3, kTogether>,
    RowGroup<4, kTogether>, RowGroup<5, kTogether>, RowGroup<6, kTogether>};

// A panel of row-major weights against all rows, `next` asked for meanwhile.
void DensePanel(const PanelArgs& a, Weights w, int32_t num_outputs) {
  const int32_t n = a.num_rows;
  const int64_t steps = w.k / kStepInputs;
  if (n <= kMaxRows) {
    const int32_t tiles = (num_outputs + Outputs(n) - 1) / Outputs(n);
    Ahead ahead(a.next[0], a.panel_bytes, tiles * steps);
    kOnlyGroup[n - 1](a.rows, w, num_outputs, ahead, a.acc);
    return;
  }
  // kTogether outputs stay in the first cache level while the rows pass.
  const int32_t groups = (n + kMaxRows - 1) / kMaxRows;
  const int32_t tiles = (num_outputs + kTogether - 1) / kTogether;
  Ahead ahead(a.next[0], a.panel_bytes, int64_t{tiles} * groups * steps);
  const bool cold = w.cold;
  for (int32_t o = 0; o < num_outputs; o += kTogether, w.data += kTogether * w.stride) {
    const int32_t outputs = std::min(kTogether, num_outputs - o);
    int32_t first = 0;
    for (int32_t g = 0; g < groups; ++g) {
      const auto last = static_cast<int32_t>(int64_t{n} * (g + 1) / groups);
      w.cold = cold && g == 0;
      kOneOfSeveral[last - first - 1](a.rows + first, w, outputs, ahead,
                                      a.acc + first * kPanelOutputs + o);
      first = last;
    }
  }
}

// nf4 against R rows without a detour through memory: chunks [first, end) of a panel, the sums of
// kPanelOutputs / C passes of C outputs kept in `sums` [R][kPanelOutputs] between calls.
// `ahead`: where to ask for as many chunks, or null.
template <int R, int C>
void FusedChunks(const std::byte* panel, const std::byte* const* rows, int64_t first, int64_t end,
                 const std::byte* ahead, __m512* sums) {
  constexpr int kPasses = static_cast<int>(kPanelOutputs) / C;
  constexpr int64_t kLines = kNF4ChunkBytes / 64;
  const __m512 table = _mm512_loadu_ps(kNF4Table);
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
      __m512i x[R][2];
      Unroll<R>([&](auto r) {
        x[r][0] = _mm512_load_si512(rows[r] + i * 128);
        x[r][1] = _mm512_load_si512(rows[r] + i * 128 + 64);
      });
      const std::byte* const chunk = panel + i * kNF4ChunkBytes;
      Unroll<C / 2>([&](auto pair) {
        constexpr int c = pair * 2;
        __m512i w[4];
        NF4Pair(table, chunk, pass * C / 2 + pair, w);
        Unroll<R>([&](auto r) {
          acc[r][c] = DotBF16(acc[r][c], w[0], x[r][0]);
          acc[r][c] = DotBF16(acc[r][c], w[1], x[r][1]);
          acc[r][c + 1] = DotBF16(acc[r][c + 1], w[2], x[r][0]);
          acc[r][c + 1] = DotBF16(acc[r][c + 1], w[3], x[r][1]);
        });
      });
    }
    Unroll<R>([&](auto r) { Unroll<C>([&](auto c) { kept[r * kPanelOutputs + c] = acc[r][c]; }); });
  }
}

// Chunks that the passes of FusedChunks share, and the distance of asking ahead.
constexpr int64_t kRegionChunks = 8;

template <int R, int C>
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
    FusedChunks<R, C>(a.weights[0], a.rows, first, end,
                      a.next[0] == nullptr ? nullptr
                      : ahead < chunks     ? a.weights[0] + ahead * kNF4ChunkBytes
                                           : a.next[0],
                      sums);
    first = end;
  }
  for (int r = 0; r < R; ++r) {
    for (int64_t c = 0; c < kPanelOutputs; c += 4) {
      const __m512* const four = sums + r * kPanelOutputs + c;
      V::Reduce4(four[0], four[1], four[2], four[3], a.acc + r * kPanelOutputs + c);
    }
  }
}

// Decoded rows are a line more than a power of two apart, so that a tile of them does not fall
// into one set of the cache.
constexpr int64_t DecodedStride(int64_t k) { return PaddedInputs(k) * 2 + 64; }

struct T {
  static constexpr const char* kTier = "avx512_vnni";
  static constexpr int kPanels = 1;
  static constexpr int64_t kTileScratchBytes = kPanelOutputs * DecodedStride(kMaxPackedInputs);
  static constexpr void (*kEnterThread)() = nullptr;
  static int32_t BlockRows(int64_t) { return kBlockRows; }
  static void BeginRows(const PanelArgs&) {}

  template <class F>
  static void Panels(const PanelArgs& a) {
    if constexpr (F::kFormat == PoolFormat::kBF16) {
      DensePanel(a, {.data = a.weights[0], .stride = a.k * 2, .k = a.k, .cold = a.cold},
                 a.num_outputs[0]);
    } else {
      NF4Panel(a);
    }
  }

  static void NF4Panel(const PanelArgs& a) {
    switch (a.num_rows) {
      case 1:
        return FusedPanel<1, 16>(a);
      case 2:
        return FusedPanel<2, 8>(a);
      case 3:
        return FusedPanel<3, 4>(a);
      case 4:
        return FusedPanel<4, 4>(a);
      default:
        break;
    }
    const __m512 table = _mm512_loadu_ps(kNF4Table);
    const int64_t stride = DecodedStride(a.k);
    for (int64_t i = 0; i < NumChunks(a.k); ++i) {
      const std::byte* const chunk = a.weights[0] + i * kNF4ChunkBytes;
      if (a.cold) {
        for (int64_t line = 0; line < kNF4ChunkBytes; line += 64) {
          AskFor(reinterpret_cast<uintptr_t>(chunk) + static_cast<uintptr_t>(2048 + line));
        }
      }
      DecodeNF4Chunk(table, chunk, stride, 64, a.scratch + i * 128);
    }
    DensePanel(a, {.data = a.scratch, .stride = stride, .k = PaddedInputs(a.k)}, kPanelOutputs);
  }
};

}  // namespace avx512_bf16
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

constinit const PackedKernels kPackedBF16Avx512[kNumPackedBF16] = {
    avx512_bf16::MakeKernels<avx512_bf16::T, avx512_bf16::BF16Format>(),
    avx512_bf16::MakeKernels<avx512_bf16::T, avx512_bf16::NF4Format>(),
};

}  // namespace banyan::expert
#endif
