// With AVX-512 F and BW, without bf16 instructions.
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/quant/nf4.h"
#include "services/expert/kernels/nf4_panel.h"
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

#include "services/expert/kernels/nf4_avx512-inl.h"

}  // namespace avx512
}  // namespace

void DecodeNF4PanelAvx512(const std::byte* panel, int64_t k, int64_t stride, std::byte* out) {
  const __m512 table = _mm512_loadu_ps(kNF4Table);
  for (int64_t i = 0; i < NumChunks(k); ++i, panel += kNF4ChunkBytes, out += kChunkInputs * 2) {
    for (int64_t line = 0; line < kNF4ChunkBytes; line += 64) {
      __builtin_prefetch(
          reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(panel) +
                                        static_cast<uintptr_t>(8 * kNF4ChunkBytes + line)),
          /*rw=*/0, /*locality=*/1);
    }
    avx512::DecodeNF4Chunk(table, panel, stride, 64, out);
  }
}

}  // namespace banyan::expert
BANYAN_TARGET_END
#endif
