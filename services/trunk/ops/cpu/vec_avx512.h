// Sixteen f32 lanes. Include only from tier_avx512.cc, which is compiled for AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace banyan::trunk::cpu {

struct VecAvx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;

  static __mmask16 FirstN(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const void* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  // The first n lanes, 0 < n < kLanes; the others are zero. Memory behind them is not touched.
  static F LoadN(const void* p, int n) { return _mm512_maskz_loadu_ps(FirstN(n), p); }
  static void StoreN(float* p, F x, int n) { _mm512_mask_storeu_ps(p, FirstN(n), x); }

  static F LoadBf16(const void* p) {
    const __m256i half = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static F LoadBf16N(const void* p, int n) {
    const __m256i half = _mm256_maskz_loadu_epi16(FirstN(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  static F LoadI8(const void* p) {
    const __m128i codes = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
  }
  static F LoadI8N(const void* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(FirstN(n), p)));
  }

  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
  static F Fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
  // NaN in x stays.
  static F Max(F bound, F x) { return _mm512_max_ps(bound, x); }
  static F Min(F bound, F x) { return _mm512_min_ps(bound, x); }
  static F RoundToInt(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x * 2^n for whole n, -252 <= n <= 254.
  static F Scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
  static F ZeroWhereLess(F x, F bound, F value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), value);
  }

  // Sums of the lanes by one fixed tree: halves, quarters, then pairs.
  static float ReduceAdd(F x) { return ReduceAdd128(To128(x)); }
  static void ReduceAdd4(F a, F b, F c, F d, float out[4]) {
    _mm_storeu_ps(out, ReduceAdd128x4(To128(a), To128(b), To128(c), To128(d)));
  }
  static float ReduceMax(F x) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
  }

 private:
  static __m128 To128(F x) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  static float ReduceAdd128(__m128 v) {
    const __m128 pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static __m128 ReduceAdd128x4(__m128 a, __m128 b, __m128 c, __m128 d) {
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));  // a0+a2 a1+a3 b..
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
    return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
  }
};

}  // namespace banyan::trunk::cpu
