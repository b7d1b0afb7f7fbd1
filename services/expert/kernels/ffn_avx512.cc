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

#include "services/expert/kernels/ffn_tile-inl.h"
#include "services/expert/kernels/vector_avx512-inl.h"

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
    .sum_rows = avx512::SumRows<avx512::V>,
};

}  // namespace banyan::expert
#endif
