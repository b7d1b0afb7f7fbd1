// The integer formats with AVX2, FMA and F16C. int8 multiplies 16-bit numbers, its rows are words:
// VPMADDUBSW saturates its pair sums, which 8-bit weights and inputs exceed. int4 weights are small
// enough for it; its rows are planes.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "services/expert/kernels/packed_int_row.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx2,fma,f16c")
namespace banyan::expert {
namespace {
namespace avx2 {

struct V {
  static constexpr int kLanes = 8;
  using Reg = __m256;
  static Reg Zero() { return _mm256_setzero_ps(); }
  static Reg Set1(float value) { return _mm256_set1_ps(value); }
  static Reg LoadX(const float* p) { return _mm256_load_ps(p); }
  static void Store(Reg a, float* p) { _mm256_storeu_ps(p, a); }
  static Reg Add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg Min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg Max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg MulAdd(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg RoundInt(Reg a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Reg Pow2(Reg n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
};

#include "services/expert/kernels/packed_int-inl.h"

template <class F>
constexpr bool kIsInt4 = F::kFormat == PoolFormat::kInt4;

// A register holds 8 accumulators.
struct T : WithoutTiles<T> {
  using V = avx2::V;
  static constexpr const char* kTier = "avx2";
  template <class F, Precision E>
  static constexpr int64_t kValueBytes = kIsInt4<F>&& E == Precision::kFast ? 1 : 2;
  // 4 sums a row, an input a row and one register of weights; accumulators pass through memory.
  static constexpr int32_t MaxRows(Precision) { return 3; }
  static constexpr int Panels(Precision, int32_t num_rows) { return num_rows == 1 ? 4 : 2; }

  template <class F, Precision E>
  static void PrepareGroup(const float* x, std::byte* row, const IntRowLayout& layout,
                           int64_t group) {
    __m256 parts[4];
    __m256i max = _mm256_setzero_si256();  // magnitudes of floats are ordered as their bits
    for (int i = 0; i < 4; ++i) {
      parts[i] = _mm256_loadu_ps(x + i * 8);
      max = _mm256_max_epi32(
          max, _mm256_and_si256(_mm256_castps_si256(parts[i]), _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i max4 = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    max4 = _mm_max_epi32(max4, _mm_shuffle_epi32(max4, 0x4e));
    max4 = _mm_max_epi32(max4, _mm_shuffle_epi32(max4, 0xb1));
    const int32_t max_bits = _mm_cvtsi128_si32(max4);
    float amax;
    std::memcpy(&amax, &max_bits, sizeof(amax));
    __m256i q[4] = {};
    float scale = 0;
    if (max_bits >= 0x7f800000) {
      scale = __builtin_nanf("");
    } else if (amax >= kMinAmax) {
      scale = amax / IntLimit(E);
      const __m256 inverse = _mm256_set1_ps(IntLimit(E) / amax);
      for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(parts[i], inverse));
    }
    const __m256i sum8 =
        _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    __m128i sum4 = _mm_add_epi32(_mm256_castsi256_si128(sum8), _mm256_extracti128_si256(sum8, 1));
    sum4 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0x4e));
    sum4 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0xb1));
    const int32_t correction = -F::kOffset * _mm_cvtsi128_si32(sum4);
    if constexpr (kIsInt4<F>) {
      StorePlanes<E>(q, row + group * kIntGroup, layout.plane);
    } else {
      for (int i = 0; i < 2; ++i) {
        // The packing goes by halves of registers; the permutation puts the quarters in order.
        const __m256i words =
            _mm256_permute4x64_epi64(_mm256_packs_epi32(q[2 * i], q[2 * i + 1]), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + (group * kIntGroup + i * 16) * 2),
                            words);
      }
    }
    std::memcpy(row + layout.scales + group * 4, &scale, 4);
    std::memcpy(row + layout.corrections + group * 4, &correction, 4);
  }

  // s8 planes, as in packed_int_row.h.
  template <Precision E>
  static void StorePlanes(const __m256i (&q)[4], std::byte* out, int64_t plane) {
    if constexpr (E == Precision::kExact) {
      __m256i high[4];
      __m256i low[4];
      for (int i = 0; i < 4; ++i) {
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(128)), 8);
        low[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(high[i], 8));
      }
      StoreBytes(high, out);
      StoreBytes(low, out + plane);
    } else {
      StoreBytes(q, out);
    }
  }
  static void StoreBytes(const __m256i (&values)[4], std::byte* out) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(values[0], values[1]),
                                             _mm256_packs_epi32(values[2], values[3]));
    // By halves of registers: quads 0 2 4 6 1 3 5 7.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(bytes, order));
  }

  // sums[j] += products of outputs 4 j to 4 j + 3 (16 stored values each) with one k-quad of the
  // row.
  template <int R>
  static inline __attribute__((always_inline)) void Quad(const __m128i (&quarters)[4],
                                                         const std::byte* const (&x)[R],
                                                         __m256i (&sums)[R][4]) {
    __m256i inputs[R];
    for (int r = 0; r < R; ++r) {
      int64_t quad;
      std::memcpy(&quad, x[r], sizeof(quad));
      inputs[r] = _mm256_set1_epi64x(quad);
    }
    for (int j = 0; j < 4; ++j) {
      const __m256i weights = _mm256_cvtepu8_epi16(quarters[j]);
      for (int r = 0; r < R; ++r) {
        sums[r][j] = _mm256_add_epi32(sums[r][j], _mm256_madd_epi16(weights, inputs[r]));
      }
    }
  }

  // One group of one int8 panel: its integer sums, scaled into the accumulators.
  template <class F, int R>
  static inline __attribute__((always_inline)) void Group(const TileArgs& a, const std::byte* chunk,
                                                          int64_t g, int64_t group, float* acc) {
    __m256i sums[R][4];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < 4; ++j) sums[r][j] = _mm256_setzero_si256();
    }
    const std::byte* x[R];
    for (int r = 0; r < R; ++r) x[r] = a.rows[r] + group * kIntGroup * 2;
    const std::byte* quads = chunk + g * kIntGroup * kPanelOutputs;
    for (int64_t i = 0; i < kIntGroup; i += 4, quads += 64) {
      const __m128i quarters[4] = {Load128(quads), Load128(quads + 16), Load128(quads + 32),
                                   Load128(quads + 48)};
      Quad<R>(quarters, x, sums);
      for (int r = 0; r < R; ++r) x[r] += 8;
    }
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < 2; ++h) {
        // Pairs of sums of an output are neighbours; adding them leaves 64-bit quarters in the
        // order 0, 2, 1, 3.
        const __m256i sum =
            _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[r][2 * h], sums[r][2 * h + 1]), 0xd8);
        Accumulate<F>(a, chunk, g, group, r, h, sum, acc);
      }
    }
  }

  // One group of one int4 panel. VPMADDUBSW is safe here: eight k-quads of pairs add up to 8 * 2 *
  // 15 * 128 = 30720 at most.
  template <class F, Precision E, int R>
  static inline __attribute__((always_inline)) void Int4Group(const TileArgs& a,
                                                              const std::byte* chunk, int64_t g,
                                                              int64_t group, float* acc) {
    constexpr int kPlanes = E == Precision::kExact ? 2 : 1;
    const __m256i mask = _mm256_set1_epi8(0x0f);
    __m256i sums[R][kPlanes][2];
    for (int r = 0; r < R; ++r) {
      for (int plane = 0; plane < kPlanes; ++plane) {
        for (int h = 0; h < 2; ++h) sums[r][plane][h] = _mm256_setzero_si256();
      }
    }
    const std::byte* pairs = chunk + g * kIntGroup / 2 * kPanelOutputs;
    for (int64_t i = 0; i < kIntGroup; i += 8, pairs += 64) {
      __m256i both[2];
      for (int h = 0; h < 2; ++h) {
        both[h] = _mm256_load_si256(reinterpret_cast<const __m256i*>(pairs + 32 * h));
      }
      for (int64_t quad = 0; quad < 8; quad += 4) {
        __m256i weights[2];
        for (int h = 0; h < 2; ++h) {
          weights[h] = _mm256_and_si256(quad == 0 ? both[h] : _mm256_srli_epi16(both[h], 4), mask);
        }
        for (int r = 0; r < R; ++r) {
          for (int plane = 0; plane < kPlanes; ++plane) {
            int32_t bytes;
            std::memcpy(&bytes, a.rows[r] + plane * a.layout->plane + group * kIntGroup + i + quad,
                        sizeof(bytes));
            const __m256i inputs = _mm256_set1_epi32(bytes);
            for (int h = 0; h < 2; ++h) {
              sums[r][plane][h] =
                  _mm256_add_epi16(sums[r][plane][h], _mm256_maddubs_epi16(weights[h], inputs));
            }
          }
        }
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < 2; ++h) {
        __m256i sum = _mm256_madd_epi16(sums[r][kPlanes - 1][h], ones);
        if constexpr (kPlanes == 2) {
          sum = _mm256_add_epi32(sum, _mm256_slli_epi32(_mm256_madd_epi16(sums[r][0][h], ones), 8));
        }
        Accumulate<F>(a, chunk, g, group, r, h, sum, acc);
      }
    }
  }

  // Scales the integer sums of outputs 8 h to 8 h + 7 into row r's accumulators.
  template <class F>
  static inline __attribute__((always_inline)) void Accumulate(const TileArgs& a,
                                                               const std::byte* chunk, int64_t g,
                                                               int64_t group, int r, int h,
                                                               __m256i sum, float* acc) {
    int32_t correction;
    float scale_x;
    std::memcpy(&correction, a.rows[r] + a.layout->corrections + group * 4, 4);
    std::memcpy(&scale_x, a.rows[r] + a.layout->scales + group * 4, 4);
    const __m128i scales = Load128(chunk + F::kScales + (g * kPanelOutputs + h * 8) * 2);
    const __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(scales), _mm256_set1_ps(scale_x));
    sum = _mm256_add_epi32(sum, _mm256_set1_epi32(correction));
    float* const out = acc + r * kPanelOutputs + h * 8;
    _mm256_store_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_load_ps(out)));
  }

  static inline __attribute__((always_inline)) __m128i Load128(const std::byte* p) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(p));
  }

  template <class F, Precision E, int P, int R>
  static void TileOfRows(const TileArgs& a) {
    Ahead<P, static_cast<int>(kIntChunkGroups)> ahead(a);
    for (int64_t c = 0; c < a.num_chunks; ++c) {
      for (int64_t g = 0; g < kIntChunkGroups; ++g) {
        ahead.Step();
        for (int p = 0; p < P; ++p) {
          const std::byte* const chunk = a.weights[p] + c * F::kChunkBytes;
          const int64_t group = (a.first_chunk + c) * kIntChunkGroups + g;
          float* const acc = a.acc + p * a.acc_panel;
          if constexpr (kIsInt4<F>) {
            Int4Group<F, E, R>(a, chunk, g, group, acc);
          } else {
            Group<F, R>(a, chunk, g, group, acc);
          }
        }
      }
    }
  }

  template <class F, Precision E, int P>
  static void Tile(const TileArgs& a) {
    switch (a.num_rows) {
      case 1:
        return TileOfRows<F, E, P, 1>(a);
      case 2:
        return TileOfRows<F, E, P, 2>(a);
      default:
        return TileOfRows<F, E, P, 3>(a);
    }
  }
};

}  // namespace avx2
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

constinit const PackedKernels kPackedIntAvx2[kNumPackedInt] = {
    avx2::MakeKernels<avx2::T, avx2::Int8, Precision::kExact>(),
    avx2::MakeKernels<avx2::T, avx2::Int8, Precision::kFast>(),
    avx2::MakeKernels<avx2::T, avx2::Int4, Precision::kExact>(),
    avx2::MakeKernels<avx2::T, avx2::Int4, Precision::kFast>(),
};

}  // namespace banyan::expert
#endif
