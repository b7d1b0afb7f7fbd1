// bf16 and nf4 with AVX-512 F, BW, DQ and VL and f32 activations, for both precisions.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace banyan::expert {
namespace {
namespace avx512 {

// The 16 weights of an output's block, twice. Their f32 products are rounded once, to bf16; they
// are finite.
inline __attribute__((always_inline)) __m512i NF4Weights(__m512 table, const float* absmax) {
  const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(table, _mm512_set1_ps(*absmax)));
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(rounded));
}

#include "services/expert/kernels/rows_f32-inl.h"
// On top of it:
#include "services/expert/kernels/packed_panels-inl.h"
// On top of it:
#include "services/expert/kernels/packed_dots-inl.h"

struct Tier : VectorTier<TwoRegisterDots<F32Rows>> {
  static constexpr const char* kTier = "avx512";
};

}  // namespace avx512
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

constinit const PackedKernels kPackedF32Avx512[kNumPackedF32] = {
    avx512::MakeKernels<avx512::Tier, avx512::BF16Format>(Precision::kExact),
    avx512::MakeKernels<avx512::Tier, avx512::BF16Format>(Precision::kFast),
    avx512::MakeKernels<avx512::Tier, avx512::NF4Format>(Precision::kExact),
    avx512::MakeKernels<avx512::Tier, avx512::NF4Format>(Precision::kFast),
};

}  // namespace banyan::expert
#endif
