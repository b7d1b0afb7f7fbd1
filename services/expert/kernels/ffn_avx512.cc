// AVX-512 F, BW, DQ and VL: 16 lanes, 32 registers. The bf16 dot product instruction is not used:
// it takes both factors in bf16, and activations here are f32.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace banyan::expert {
namespace {
namespace avx512 {

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

#include "services/expert/kernels/ffn_tile-inl.h"

void WidenArray(const std::byte* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(V::Load<BF16>(in + i * 2), out + i);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    _mm512_mask_storeu_ps(out + i, static_cast<__mmask16>((1u << rest) - 1u),
                          V::LoadPart<BF16>(in + i * 2, rest));
  }
}

void NarrowArray(const float* in, int64_t n, BF16* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    const __m512 value = _mm512_loadu_ps(in + i);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_blend_epi32(is_nan, rounded, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi32_epi16(rounded));
  }
  for (; i < n; ++i) out[i] = ToBF16(in[i]);
}

}  // namespace avx512
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

const FfnKernels kAvx512Kernels = {
    .name = "avx512",
    .lanes = avx512::V::kLanes,
    .fused = true,
    .gate_up = avx512::GateUp<avx512::V>,
    .down = avx512::Down<avx512::V>,
    .silu = avx512::SiluArray<avx512::V>,
    .widen = avx512::WidenArray,
    .narrow = avx512::NarrowArray,
};

}  // namespace banyan::expert
#endif
