// Loops whose index is a constant. Included inside a tier's target region and namespace; no include
// guard on purpose; the includer has included <utility>.

// f(0), ..., f(N - 1) with indices that are constants: arrays of registers indexed in loops are
// kept in memory by GCC 12 around the loop that follows (a Dots call of 16 steps: 600 cycles, not
// 450).
template <class F, int... kIndices>
inline __attribute__((always_inline)) void UnrollIndices(F f,
                                                         std::integer_sequence<int, kIndices...>) {
  (f(std::integral_constant<int, kIndices>{}), ...);
}
template <int N, class F>
inline __attribute__((always_inline)) void Unroll(F f) {
  UnrollIndices(f, std::make_integer_sequence<int, N>{});
}
