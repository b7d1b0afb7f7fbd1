// Looking nf4 weights up, 32 at a time. Included inside the region and namespace of a tier with
// AVX-512 BW, after NF4Weights(table, absmax): the 16 bf16 weights of a block, twice. No include
// guard on purpose; the includer has included <immintrin.h> and nf4.h.

// Of a pair of outputs: w[0], w[1] the two steps of the even one, w[2], w[3] of the odd one.
inline __attribute__((always_inline)) void NF4Pair(__m512 table, const std::byte* chunk,
                                                   int64_t pair, __m512i (&w)[4]) {
  const auto* absmax = reinterpret_cast<const float*>(chunk + kNF4ChunkScales) + pair * 2;
  const __m512i even = NF4Weights(table, absmax);
  const __m512i odd = NF4Weights(table, absmax + 1);
  const __m512i codes = _mm512_load_si512(chunk + pair * 64);
  w[0] = _mm512_permutexvar_epi16(codes, even);
  w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), even);
  w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), odd);
  w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), odd);
}
