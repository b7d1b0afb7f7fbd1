// Rows of bf16 for bf16 dot products, and nf4 tables by the conversion instruction. Included inside
// a target region with AVX512_BF16; no include guard on purpose.

// A step of 32 inputs: bf16 in natural order. NaN stays NaN, numbers below 2^-126 become zero.
struct BF16Rows {
  static constexpr int64_t kStepBytes = 64;
  using Reg = __m512i;
  static Reg Load(const std::byte* step) { return _mm512_load_si512(step); }
  // acc + the products of 32 weights and inputs, two to a sum.
  static inline __attribute__((always_inline)) __m512 Dot(__m512 acc, __m512i w, const Reg& x) {
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
  }
  static void Put(const float* x, std::byte* out) {
    _mm512_store_si512(out,
                       (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
  }
};

// 16 values of f32 as the sums of two bf16 each: what is left of a value is at most 2^-18 of it.
// One that rounds to infinity becomes NaN.
inline __attribute__((always_inline)) void SplitInTwo(__m512 x, __m256i& large, __m256i& small) {
  large = (__m256i)_mm512_cvtneps_pbh(x);
  const __m512i widened = _mm512_slli_epi32(_mm512_cvtepu16_epi32(large), 16);
  small = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(x, _mm512_castsi512_ps(widened)));
}

// A step of 32 inputs in f32, split: the larger terms in natural order, then the smaller ones.
struct TwoTermRows {
  static constexpr int64_t kStepBytes = 128;
  struct Reg {
    __m512i large;
    __m512i small;
  };
  static Reg Load(const std::byte* step) {
    return {_mm512_load_si512(step), _mm512_load_si512(step + 64)};
  }
  static inline __attribute__((always_inline)) __m512 Dot(__m512 acc, __m512i w, const Reg& x) {
    return BF16Rows::Dot(BF16Rows::Dot(acc, w, x.large), w, x.small);
  }
  static void Put(const float* x, std::byte* out) {
    for (int half = 0; half < 2; ++half) {
      __m256i large;
      __m256i small;
      SplitInTwo(_mm512_loadu_ps(x + half * 16), large, small);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out) + half, large);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + 64) + half, small);
    }
  }
};

// The 16 weights of an output's block, twice. Their f32 products are rounded once, to bf16.
inline __attribute__((always_inline)) __m512i NF4Weights(__m512 table, const float* absmax) {
  const __m512 products = _mm512_mul_ps(table, _mm512_set1_ps(*absmax));
  return (__m512i)_mm512_cvtne2ps_pbh(products, products);
}
