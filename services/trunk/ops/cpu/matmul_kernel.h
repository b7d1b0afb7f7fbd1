// c[i, n] (+)= sum over d of a(i, d) * b[d, n]: small dense products of attention and DeltaNet.
// Vectors run along n; each element is one chain of multiply-adds in ascending d that starts at
// zero or at c, whatever the register tile: its bits do not depend on the rows computed beside it.
#pragma once

#include <cstdint>

namespace banyan::trunk::cpu {

struct MatmulArgs {
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;  // a(i, d) = a[i * a_row + d * a_col]
  int64_t a_row = 0, a_col = 1;
  const float* b = nullptr;  // [k, n], row stride ldb
  int64_t ldb = 0;
  float* c = nullptr;  // [m, n], row stride ldc
  int64_t ldc = 0;
  bool accumulate = false;
};

template <typename V, int M, int N>
inline void MatmulRegisterTile(const MatmulArgs& p, int64_t i0, int64_t n0) {
  using F = typename V::F;
  F acc[M][N];
  const float* a = p.a + i0 * p.a_row;
  const float* b = p.b + n0;
  float* c = p.c + i0 * p.ldc + n0;
  for (int i = 0; i < M; ++i) {
    for (int n = 0; n < N; ++n) {
      acc[i][n] = p.accumulate ? V::Load(c + i * p.ldc + n * V::kLanes) : V::Zero();
    }
  }
  for (int64_t d = 0; d < p.k; ++d) {
    F bv[N];
    for (int n = 0; n < N; ++n) bv[n] = V::Load(b + d * p.ldb + n * V::kLanes);
    for (int i = 0; i < M; ++i) {
      const F av = V::Set(a[i * p.a_row + d * p.a_col]);
      for (int n = 0; n < N; ++n) acc[i][n] = V::Fma(av, bv[n], acc[i][n]);
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int n = 0; n < N; ++n) V::Store(c + i * p.ldc + n * V::kLanes, acc[i][n]);
  }
}

// The last columns, fewer than a vector.
template <typename V, int M>
inline void MatmulTail(const MatmulArgs& p, int64_t i0, int64_t n0) {
  using F = typename V::F;
  const int rest = static_cast<int>(p.n - n0);
  F acc[M];
  for (int i = 0; i < M; ++i) {
    acc[i] = p.accumulate ? V::LoadN(p.c + (i0 + i) * p.ldc + n0, rest) : V::Zero();
  }
  for (int64_t d = 0; d < p.k; ++d) {
    const F bv = V::LoadN(p.b + d * p.ldb + n0, rest);
    for (int i = 0; i < M; ++i) {
      acc[i] = V::Fma(V::Set(p.a[(i0 + i) * p.a_row + d * p.a_col]), bv, acc[i]);
    }
  }
  for (int i = 0; i < M; ++i) V::StoreN(p.c + (i0 + i) * p.ldc + n0, acc[i], rest);
}

template <typename V, int M>
inline void MatmulRows(const MatmulArgs& p, int64_t i0) {
  constexpr int kN = V::kRegisters == 32 && M <= 6 ? 4 : (V::kRegisters == 16 && M > 6 ? 1 : 2);
  int64_t n = 0;
  for (; n + kN * V::kLanes <= p.n; n += kN * V::kLanes) MatmulRegisterTile<V, M, kN>(p, i0, n);
  for (; n + V::kLanes <= p.n; n += V::kLanes) MatmulRegisterTile<V, M, 1>(p, i0, n);
  if (n < p.n) MatmulTail<V, M>(p, i0, n);
}

template <typename V>
inline void Matmul(const MatmulArgs& p) {
  // Six rows at a time; eight as one tile rather than six and two, because that is a decoding row
  // with eight query heads.
  int64_t i = 0;
  for (; i + 6 <= p.m && i + 8 != p.m; i += 6) MatmulRows<V, 6>(p, i);
  switch (p.m - i) {
    case 8:
      return MatmulRows<V, 8>(p, i);
    case 5:
      return MatmulRows<V, 5>(p, i);
    case 4:
      return MatmulRows<V, 4>(p, i);
    case 3:
      return MatmulRows<V, 3>(p, i);
    case 2:
      return MatmulRows<V, 2>(p, i);
    case 1:
      return MatmulRows<V, 1>(p, i);
    default:
      return;
  }
}

}  // namespace banyan::trunk::cpu
