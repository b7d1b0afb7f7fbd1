// Rows of f32 against weights of bf16. Included inside a target region with AVX-512 F and BW; no
// include guard on purpose.

// A step of 32 inputs: the 16 even ones, then the 16 odd ones, as the halves of 16 dwords of
// weights are widened with one instruction each.
struct F32Rows {
  static constexpr int64_t kStepBytes = 128;
  struct Reg {
    __m512 even;
    __m512 odd;
  };
  static Reg Load(const std::byte* step) {
    const auto* values = reinterpret_cast<const float*>(step);
    return {_mm512_load_ps(values), _mm512_load_ps(values + 16)};
  }
  // acc + the even products + the odd ones, each product and sum rounded once.
  static inline __attribute__((always_inline)) __m512 Dot(__m512 acc, __m512i w, const Reg& x) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), x.even, acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_epi32(w, upper)), x.odd, acc);
  }
  static void Put(const float* x, std::byte* out) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 low = _mm512_loadu_ps(x);
    const __m512 high = _mm512_loadu_ps(x + 16);
    auto* const values = reinterpret_cast<float*>(out);
    _mm512_store_ps(values, _mm512_permutex2var_ps(low, even, high));
    _mm512_store_ps(values + 16, _mm512_permutex2var_ps(low, odd, high));
  }
};
