// Eight f32 lanes. Include only from tier_avx2.cc, which is compiled for AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace banyan::trunk::cpu {

struct VecAvx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;

  static __m256i FirstN(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const void* p) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  // The first n lanes, 0 < n < kLanes; the others are zero. Memory behind them is not touched.
  static F LoadN(const void* p, int n) {
    return _mm256_castsi256_ps(_mm256_maskload_epi32(static_cast<const int*>(p), FirstN(n)));
  }
  static void StoreN(float* p, F x, int n) { _mm256_maskstore_ps(p, FirstN(n), x); }

  static F LoadBf16(const void* p) {
    const __m128i half = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static F LoadBf16N(const void* p, int n) {
    alignas(16) uint16_t bits[8] = {};
    __builtin_memcpy(bits, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return LoadBf16(bits);
  }

  static F LoadI8(const void* p) {
    const __m128i codes = _mm_loadl_epi64(static_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  }
  static F LoadI8N(const void* p, int n) {
    alignas(8) int8_t codes[8] = {};
    __builtin_memcpy(codes, p, static_cast<size_t>(n));
    return LoadI8(codes);
  }

  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static F Max(F bound, F x) { return _mm256_max_ps(bound, x); }
  static F Min(F bound, F x) { return _mm256_min_ps(bound, x); }
  static F RoundToInt(F x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x * 2^n in two halves, so that neither factor overflows.
  static F Scale2(F x, F n) {
    const __m256i exponent = _mm256_cvtps_epi32(n);
    const __m256i first = _mm256_srai_epi32(exponent, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, Power2(first)),
                         Power2(_mm256_sub_epi32(exponent, first)));
  }
  static F ZeroWhereLess(F x, F bound, F value) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, bound, _CMP_LT_OQ), value);
  }

  static float ReduceAdd(F x) { return ReduceAdd128(To128(x)); }
  static void ReduceAdd4(F a, F b, F c, F d, float out[4]) {
    _mm_storeu_ps(out, ReduceAdd128x4(To128(a), To128(b), To128(c), To128(d)));
  }
  static float ReduceMax(F x) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
  }

 private:
  static F Power2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static __m128 To128(F x) {
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  }
  static float ReduceAdd128(__m128 v) {
    const __m128 pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static __m128 ReduceAdd128x4(__m128 a, __m128 b, __m128 c, __m128 d) {
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
    return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
  }
};

}  // namespace banyan::trunk::cpu
