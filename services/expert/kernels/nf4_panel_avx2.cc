// With AVX2: a table of 16 bf16 is two of bytes, low and high ones, looked up with one VPSHUFB.
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/quant/nf4.h"
#include "services/expert/kernels/nf4_panel.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx2,fma")
namespace banyan::expert {
namespace {
namespace avx2 {

// 8 products rounded to bf16, in the low halves of dwords. They are finite.
inline __m256i RoundedProducts(const float* table, __m256 absmax) {
  const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(table), absmax));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))),
                           16);
}

// Lower lane: the low bytes of the 16 weights; upper lane: the high ones.
inline __m256i TableOf(const float* absmax) {
  const __m256 scale = _mm256_set1_ps(*absmax);
  // Packing goes by lanes; the permutations put quarters in order.
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(RoundedProducts(kNF4Table, scale), RoundedProducts(kNF4Table + 8, scale)),
      0xd8);
  const __m256i low = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(low, _mm256_srli_epi16(words, 8)), 0xd8);
}

// 16 weights whose codes are the low halves of 16 words.
inline void LookUp(__m256i table, __m256i words, std::byte* out) {
  const __m256i codes = _mm256_and_si256(words, _mm256_set1_epi16(0x0f));
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  const __m256i found = _mm256_shuffle_epi8(table, _mm256_broadcastsi128_si256(bytes));
  const __m128i low = _mm256_castsi256_si128(found);
  const __m128i high = _mm256_extracti128_si256(found, 1);
  auto* const to = reinterpret_cast<__m128i*>(out);
  _mm_store_si128(to, _mm_unpacklo_epi8(low, high));
  _mm_store_si128(to + 1, _mm_unpackhi_epi8(low, high));
}

}  // namespace avx2
}  // namespace

void DecodeNF4PanelAvx2(const std::byte* panel, int64_t k, int64_t stride, std::byte* out) {
  for (int64_t i = 0; i < NumChunks(k); ++i, panel += kNF4ChunkBytes, out += kChunkInputs * 2) {
    for (int64_t line = 0; line < kNF4ChunkBytes; line += 64) {
      __builtin_prefetch(
          reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(panel) +
                                        static_cast<uintptr_t>(8 * kNF4ChunkBytes + line)),
          /*rw=*/0, /*locality=*/1);
    }
    for (int64_t pair = 0; pair < kPanelOutputs / 2; ++pair) {
      const auto* absmax = reinterpret_cast<const float*>(panel + kNF4ChunkScales) + pair * 2;
      const __m256i even = avx2::TableOf(absmax);
      const __m256i odd = avx2::TableOf(absmax + 1);
      std::byte* const even_row = out + 2 * pair * stride;
      std::byte* const odd_row = even_row + stride;
      for (int64_t half = 0; half < 2; ++half) {
        const __m256i codes =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + pair * 64 + half * 32));
        avx2::LookUp(even, codes, even_row + half * 32);
        avx2::LookUp(even, _mm256_srli_epi16(codes, 4), even_row + 64 + half * 32);
        avx2::LookUp(odd, _mm256_srli_epi16(codes, 8), odd_row + half * 32);
        avx2::LookUp(odd, _mm256_srli_epi16(codes, 12), odd_row + 64 + half * 32);
      }
    }
  }
}

}  // namespace banyan::expert
BANYAN_TARGET_END
#endif
