// AVX-512 with VNNI for the integer formats: 16 outputs a register, one k-quad (4 inputs of each)
// an instruction. Shared by the tiers avx512_vnni and amx, which prepare rows alike: planes of s8,
// packed_int_row.h. Included inside the region and namespace of each, after packed_int-inl.h's own
// requirements and <immintrin.h>; no include guard on purpose.

struct V16 {
  static constexpr int kLanes = 16;
  using Reg = __m512;
  static Reg Zero() { return _mm512_setzero_ps(); }
  static Reg Set1(float value) { return _mm512_set1_ps(value); }
  static Reg LoadX(const float* p) { return _mm512_load_ps(p); }
  static void Store(Reg a, float* p) { _mm512_storeu_ps(p, a); }
  static Reg Add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg Min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg Max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg MulAdd(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg RoundInt(Reg a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Reg Pow2(Reg n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
};

#include "services/expert/kernels/packed_int-inl.h"

// Rows as planes of s8, and tiles of up to six rows.
struct Vnni {
  using V = V16;
  template <Precision E>
  static constexpr int64_t kValueBytes = E == Precision::kExact ? 2 : 1;
  // Rows x panels x (a sum a plane and an accumulator), weights and one input fit 32 registers.
  static constexpr int32_t MaxRows(Precision e) { return e == Precision::kExact ? 4 : 6; }
  static constexpr int Panels(Precision e, int32_t num_rows) {
    return num_rows <= (e == Precision::kExact ? 1 : 2) ? 4 : 2;
  }

  template <class F, Precision E>
  static void PrepareGroup(const float* x, std::byte* row, const IntRowLayout& layout,
                           int64_t group) {
    const __m512 x0 = _mm512_loadu_ps(x);
    const __m512 x1 = _mm512_loadu_ps(x + 16);
    // Magnitudes of floats are ordered as their bits.
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const int32_t max_bits = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                         _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
    float amax;
    std::memcpy(&amax, &max_bits, sizeof(amax));
    __m512i q0 = _mm512_setzero_si512();
    __m512i q1 = _mm512_setzero_si512();
    float scale = 0;
    if (max_bits >= 0x7f800000) {
      scale = __builtin_nanf("");
    } else if (amax >= kMinAmax) {
      scale = amax / IntLimit(E);
      const __m512 inverse = _mm512_set1_ps(IntLimit(E) / amax);
      q0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, inverse));
      q1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, inverse));
    }
    const int32_t correction = -F::kOffset * _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    std::byte* const values = row + group * kIntGroup;
    if constexpr (E == Precision::kExact) {
      const __m512i half = _mm512_set1_epi32(128);
      const __m512i h0 = _mm512_srai_epi32(_mm512_add_epi32(q0, half), 8);
      const __m512i h1 = _mm512_srai_epi32(_mm512_add_epi32(q1, half), 8);
      StoreBytes(h0, h1, values);
      StoreBytes(_mm512_sub_epi32(q0, _mm512_slli_epi32(h0, 8)),
                 _mm512_sub_epi32(q1, _mm512_slli_epi32(h1, 8)), values + layout.plane);
    } else {
      StoreBytes(q0, q1, values);
    }
    std::memcpy(row + layout.scales + group * 4, &scale, 4);
    std::memcpy(row + layout.corrections + group * 4, &correction, 4);
  }

  static void StoreBytes(__m512i a, __m512i b, std::byte* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtepi32_epi8(b));
  }

  // k-quads 2 * pair and 2 * pair + 1 of a chunk, [16 outputs][4 k] unsigned.
  template <class F>
  static inline __attribute__((always_inline)) void LoadPair(const std::byte* chunk, int pair,
                                                             __m512i (&quads)[2]) {
    if constexpr (F::kFormat == PoolFormat::kInt8) {
      quads[0] = _mm512_load_si512(chunk + pair * 128);
      quads[1] = _mm512_load_si512(chunk + pair * 128 + 64);
    } else {
      const __m512i low = _mm512_set1_epi8(0x0f);
      const __m512i both = _mm512_load_si512(chunk + pair * 64);
      quads[0] = _mm512_and_si512(both, low);
      quads[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
  }

  static inline __attribute__((always_inline)) __m512i Broadcast32(const std::byte* p) {
    int32_t value;
    std::memcpy(&value, p, sizeof(value));
    return _mm512_set1_epi32(value);
  }
  static inline __attribute__((always_inline)) __m512 BroadcastFloat(const std::byte* p) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return _mm512_set1_ps(value);
  }

  template <class F, Precision E, int R, int P>
  static void TileOfRows(const TileArgs& a) {
    constexpr int kPlanes = E == Precision::kExact ? 2 : 1;
    constexpr int kPairs = static_cast<int>(kIntGroup) / 8;  // of k-quads in a group
    const IntRowLayout layout = *a.layout;
    Ahead<P, kPairs* static_cast<int>(kIntChunkGroups)> ahead(a);
    const std::byte* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = a.rows[r];
    __m512 acc[R][P];
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) {
        acc[r][p] = _mm512_load_ps(a.acc + p * a.acc_panel + r * kPanelOutputs);
      }
    }
    int64_t group = a.first_chunk * kIntChunkGroups;
    for (int64_t c = 0; c < a.num_chunks; ++c) {
      for (int g = 0; g < static_cast<int>(kIntChunkGroups); ++g, ++group) {
        __m512i sums[kPlanes][R][P];
        for (int r = 0; r < R; ++r) {
          const __m512i correction = Broadcast32(rows[r] + layout.corrections + group * 4);
          for (int p = 0; p < P; ++p) {
            sums[0][r][p] = _mm512_setzero_si512();
            sums[kPlanes - 1][r][p] = correction;
          }
        }
        for (int pair = 0; pair < kPairs; ++pair) {
          ahead.Step();
          __m512i quads[P][2];
          for (int p = 0; p < P; ++p) {
            LoadPair<F>(a.weights[p] + c * F::kChunkBytes, g * kPairs + pair, quads[p]);
          }
          for (int half = 0; half < 2; ++half) {
            for (int r = 0; r < R; ++r) {
              for (int plane = 0; plane < kPlanes; ++plane) {
                const __m512i x = Broadcast32(rows[r] + plane * layout.plane + group * kIntGroup +
                                              (pair * 2 + half) * 4);
                for (int p = 0; p < P; ++p) {
                  sums[plane][r][p] = _mm512_dpbusd_epi32(sums[plane][r][p], quads[p][half], x);
                }
              }
            }
          }
        }
        __m512 scales[P];
        for (int p = 0; p < P; ++p) {
          scales[p] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(
              a.weights[p] + c * F::kChunkBytes + F::kScales + g * kPanelOutputs * 2)));
        }
        for (int r = 0; r < R; ++r) {
          const __m512 scale_x = BroadcastFloat(rows[r] + layout.scales + group * 4);
          for (int p = 0; p < P; ++p) {
            __m512i sum = sums[kPlanes - 1][r][p];
            if constexpr (kPlanes == 2) {
              sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sums[0][r][p], 8));
            }
            acc[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scales[p], scale_x),
                                        acc[r][p]);
          }
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) {
        _mm512_store_ps(a.acc + p * a.acc_panel + r * kPanelOutputs, acc[r][p]);
      }
    }
  }

  template <class F, Precision E, int P, int R = MaxRows(E)>
  static void TileUpTo(const TileArgs& a) {
    if constexpr (P <= Panels(E, R)) {
      if (a.num_rows == R) return TileOfRows<F, E, R, P>(a);
    }
    if constexpr (R > 1) TileUpTo<F, E, P, R - 1>(a);
  }
};
