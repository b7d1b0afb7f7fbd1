// The vector type V of the AVX-512 tiers (operations: ffn_tile-inl.h and silu-inl.h). Included
// inside a tier's target region and namespace; no include guard on purpose; the includer has
// included <immintrin.h> and bf16.h.

struct V {
  static constexpr int kLanes = 16;
  static constexpr int kMaxRows = 8;
  // Rows x outputs + rows + 1 <= 32. More rows amortise the two instructions that widen a vector of
  // weights, which compete with multiplications for their port.
  static constexpr int Outputs(int rows) { return rows <= 3 ? 8 : rows <= 6 ? 4 : 2; }
  using Reg = __m512;

  static Reg Zero() { return _mm512_setzero_ps(); }
  static Reg Set1(float value) { return _mm512_set1_ps(value); }
  static Reg LoadX(const float* p) { return _mm512_load_ps(p); }
  static Reg LoadUnaligned(const float* p) { return _mm512_loadu_ps(p); }
  template <class W>
  static Reg Load(const std::byte* p) {
    if constexpr (sizeof(W) == 2) {
      return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    } else {
      return _mm512_loadu_ps(p);
    }
  }
  // Masked loads do not touch what lies behind n elements.
  template <class W>
  static Reg LoadPart(const std::byte* p, int n) {
    const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1u);
    if constexpr (sizeof(W) == 2) {
      return Widen(_mm256_maskz_loadu_epi16(mask, p));
    } else {
      return _mm512_maskz_loadu_ps(mask, p);
    }
  }
  static Reg Widen(__m256i raw) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
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
  static void Reduce4(Reg a, Reg b, Reg c, Reg d, float* out) {
    const __m128 a4 = Quarter(a), b4 = Quarter(b), c4 = Quarter(c), d4 = Quarter(d);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a4, b4), _mm_unpackhi_ps(a4, b4));
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c4, d4), _mm_unpackhi_ps(c4, d4));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
  }
  static __m128 Quarter(Reg a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
};
