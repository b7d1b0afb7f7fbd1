// AVX2 and FMA: 8 lanes, 16 registers.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx2,fma")
namespace banyan::expert {
namespace {
namespace avx2 {

struct V {
  static constexpr int kLanes = 8;
  static constexpr int kMaxRows = 4;
  // Chains needed to hide an FMA's latency of 4 at two a cycle: 8. Rows x outputs + rows + 1 <= 16.
  static constexpr int Outputs(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
  using Reg = __m256;

  static Reg Zero() { return _mm256_setzero_ps(); }
  static Reg Set1(float value) { return _mm256_set1_ps(value); }
  static Reg LoadX(const float* p) { return _mm256_load_ps(p); }
  static Reg LoadUnaligned(const float* p) { return _mm256_loadu_ps(p); }
  template <class W>
  static Reg Load(const std::byte* p) {
    if constexpr (sizeof(W) == 2) {
      const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    } else {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    }
  }
  template <class W>
  static Reg LoadPart(const std::byte* p, int n) {
    alignas(32) std::byte part[kLanes * sizeof(W)] = {};
    std::memcpy(part, p, static_cast<size_t>(n) * sizeof(W));
    return Load<W>(part);
  }
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
  static void Reduce4(Reg a, Reg b, Reg c, Reg d, float* out) {
    const __m128 a4 = Half(a), b4 = Half(b), c4 = Half(c), d4 = Half(d);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a4, b4), _mm_unpackhi_ps(a4, b4));
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c4, d4), _mm_unpackhi_ps(c4, d4));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
  }
  static __m128 Half(Reg a) {
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  }
};

#include "services/expert/kernels/ffn_tile-inl.h"

void WidenArray(const std::byte* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(V::Load<BF16>(in + i * 2), out + i);
  for (; i < n; ++i) {
    BF16 value;
    std::memcpy(&value, in + i * 2, 2);
    out[i] = ToFloat(value);
  }
}

void NarrowArray(const float* in, int64_t n, BF16* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    const __m256 value = _mm256_loadu_ps(in + i);
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), packed);
  }
  for (; i < n; ++i) out[i] = ToBF16(in[i]);
}

}  // namespace avx2
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

const FfnKernels kAvx2Kernels = {
    .name = "avx2",
    .lanes = avx2::V::kLanes,
    .fused = true,
    .gate_up = avx2::GateUp<avx2::V>,
    .down = avx2::Down<avx2::V>,
    .silu = avx2::SiluArray<avx2::V>,
    .widen = avx2::WidenArray,
    .narrow = avx2::NarrowArray,
    .sum_rows = avx2::SumRows<avx2::V>,
};

}  // namespace banyan::expert
#endif
