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

// Row-major weights against up to kMaxRows rows: tiles of rows x outputs sums, with the rows and
// one vector of weights in registers.
constexpr int kMaxRows = 6;
constexpr int Outputs(int rows) { return rows <= 3 ? 8 : 4; }

// out[r * kPanelOutputs + c] = dot(x[r], weights row c), rows of weights `stride` bytes apart.
// `cold`: asks for the weights themselves as well, 512 bytes ahead.
template <int R, int C>
inline void Dots(const std::byte* const (&x)[R], const std::byte* weights, int64_t stride,
                 int64_t k, bool cold, Ahead& ahead, float* out) {
  __m512 acc[R * C];
  for (__m512& sum : acc) sum = _mm512_setzero_ps();
  int64_t i = 0;  // bytes
  for (; i + 64 <= k * 2; i += 64) {
    ahead.Step();
    if (cold) {
      for (int c = 0; c < C; ++c) {
        AskFor(reinterpret_cast<uintptr_t>(weights) + static_cast<uintptr_t>(c * stride + i + 512));
      }
    }
    __m512i xs[R];
    for (int r = 0; r < R; ++r) xs[r] = _mm512_load_si512(x[r] + i);
    for (int c = 0; c < C; ++c) {
      const __m512i w = _mm512_loadu_si512(weights + c * stride + i);
      for (int r = 0; r < R; ++r) acc[r * C + c] = DotBF16(acc[r * C + c], w, xs[r]);
    }
  }
  if (i < k * 2) {
    // Rows are zero there; what lies behind k in the weights is not.
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (k - i / 2)) - 1);
    for (int c = 0; c < C; ++c) {
      const __m512i w = _mm512_maskz_loadu_epi16(mask, weights + c * stride + i);
      for (int r = 0; r < R; ++r) {
        acc[r * C + c] = DotBF16(acc[r * C + c], w, _mm512_load_si512(x[r] + i));
      }
    }
  }
  if constexpr (C == 1) {
    for (int r = 0; r < R; ++r) {
      float sums[4];
      V::Reduce4(acc[r], acc[r], acc[r], acc[r], sums);
      out[r * kPanelOutputs] = sums[0];
    }
  } else {
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; c += 4) {
        const __m512* const four = acc + r * C + c;
        V::Reduce4(four[0], four[1], four[2], four[3], out + r * kPanelOutputs + c);
      }
    }
  }
}

// Outputs [o, end) of a panel against R rows.
template <int R>
void RowGroup(const std::byte* const* rows, const std::byte* weights, int64_t stride, int64_t k,
              int32_t o, int32_t end, bool cold, Ahead& ahead, float* out) {
  constexpr int C = Outputs(R);
  const std::byte* x[R];
  for (int r = 0; r < R; ++r) x[r] = rows[r];
  for (; o + C <= end; o += C) Dots<R, C>(x, weights + o * stride, stride, k, cold, ahead, out + o);
  for (; o < end; ++o) Dots<R, 1>(x, weights + o * stride, stride, k, cold, ahead, out + o);
}

using RowGroupFunction = void (*)(const std::byte* const* rows, const std::byte* weights,
                                  int64_t stride, int64_t k, int32_t o, int32_t end, bool cold,
                                  Ahead& ahead, float* out);
constexpr RowGroupFunction kRowGroups[kMaxRows] = {RowGroup<1>, RowGroup<2>, RowGroup<3>,
                                                   RowGroup<4>, RowGroup<5>, RowGroup<6>};

// A panel of row-major weights against all rows, `next` asked for meanwhile.
void DensePanel(const PanelArgs& a, const std::byte* weights, int64_t stride, int64_t k,
                bool cold) {
  const int32_t groups = (a.num_rows + kMaxRows - 1) / kMaxRows;
  // Outputs that the rows pass over together stay in the first cache level.
  const int32_t together = groups == 1 ? kPanelOutputs : 4;
  const int32_t tiles = groups == 1
                            ? (a.num_outputs[0] + Outputs(a.num_rows) - 1) / Outputs(a.num_rows)
                            : (a.num_outputs[0] + 3) / 4;
  Ahead ahead(a.next[0], a.panel_bytes, int64_t{tiles} * groups * (k / kStepInputs));
  for (int32_t o = 0; o < a.num_outputs[0]; o += together) {
    const int32_t end = std::min(o + together, a.num_outputs[0]);
    int32_t first = 0;
    for (int32_t g = 0; g < groups; ++g) {
      const int32_t last = static_cast<int32_t>(int64_t{a.num_rows} * (g + 1) / groups);
      kRowGroups[last - first - 1](a.rows + first, weights, stride, k, o, end, cold && g == 0,
                                   ahead, a.acc + first * kPanelOutputs);
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
    __m512 acc[R * C];
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) {
        acc[r * C + c] = first == 0 ? _mm512_setzero_ps() : sums[r * kPanelOutputs + pass * C + c];
      }
    }
    for (int64_t i = first; i < end; ++i) {
      if (ahead != nullptr) {
        const auto at = reinterpret_cast<uintptr_t>(ahead + (i - first) * kNF4ChunkBytes);
        for (int64_t line = kLines * pass / kPasses; line < kLines * (pass + 1) / kPasses; ++line) {
          AskFor(at + static_cast<uintptr_t>(line * 64));
        }
      }
      __m512i x[R][2];
      for (int r = 0; r < R; ++r) {
        x[r][0] = _mm512_load_si512(rows[r] + i * 128);
        x[r][1] = _mm512_load_si512(rows[r] + i * 128 + 64);
      }
      const std::byte* const chunk = panel + i * kNF4ChunkBytes;
      for (int c = 0; c < C; c += 2) {
        __m512i w[4];
        NF4Pair(table, chunk, (pass * C + c) / 2, w);
        for (int r = 0; r < R; ++r) {
          acc[r * C + c] = DotBF16(acc[r * C + c], w[0], x[r][0]);
          acc[r * C + c] = DotBF16(acc[r * C + c], w[1], x[r][1]);
          acc[r * C + c + 1] = DotBF16(acc[r * C + c + 1], w[2], x[r][0]);
          acc[r * C + c + 1] = DotBF16(acc[r * C + c + 1], w[3], x[r][1]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sums[r * kPanelOutputs + pass * C + c] = acc[r * C + c];
    }
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
      DensePanel(a, a.weights[0], a.k * 2, a.k, a.cold);
    } else {
      NF4Panel(a);
    }
  }

  static void NF4Panel(const PanelArgs& args) {
    switch (args.num_rows) {
      case 1:
        return FusedPanel<1, 16>(args);
      case 2:
        return FusedPanel<2, 8>(args);
      case 3:
        return FusedPanel<3, 4>(args);
      case 4:
        return FusedPanel<4, 4>(args);
      default:
        break;
    }
    PanelArgs a = args;
    a.num_outputs[0] = kPanelOutputs;
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
    DensePanel(a, a.scratch, stride, PaddedInputs(a.k), /*cold=*/false);
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
