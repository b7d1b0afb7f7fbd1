// RMS norms of one row or head (model spec 3.1), partial rotation (3.5) and element-wise functions.
#pragma once

#include <cstdint>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/vec_math.h"

namespace banyan::trunk::cpu {

template <typename V>
inline float SumOfSquares(const float* x, int64_t n) {
  typename V::F acc = V::Zero();
  ForEachVector<V>(n, [&](int64_t i, auto load, auto) {
    const typename V::F v = load(x + i);
    acc = V::Fma(v, v, acc);
  });
  return V::ReduceAdd(acc);
}

template <typename V>
inline float InverseRms(const float* x, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(SumOfSquares<V>(x, n) / static_cast<float>(n) + eps);
}

template <typename V>
void NormRowKernel(const NormRow& p) {
  if (p.addend != nullptr) {
    ForEachVector<V>(p.n, [&](int64_t i, auto load, auto store) {
      store(p.x + i, V::Add(load(p.x + i), load(p.addend + i)));
    });
  }
  const typename V::F scale = V::Set(InverseRms<V>(p.x, p.n, p.eps));
  const typename V::F one = V::Set(1.0f);
  ForEachVector<V>(p.n, [&](int64_t i, auto load, auto store) {
    store(p.out + i, V::Mul(V::Mul(load(p.x + i), scale), V::Add(one, load(p.weight + i))));
  });
}

template <typename V>
void NormRopeHeadKernel(const NormRopeHead& p) {
  NormRowKernel<V>({.x = const_cast<float*>(p.x),  // read only without an addend
                    .weight = p.weight,
                    .n = p.head_dim,
                    .eps = p.eps,
                    .out = p.out});
  // Pairs (i, i + half) of the first rotary_dim dimensions.
  const int64_t half = p.rotary_dim / 2;
  float* low = p.out;
  float* high = p.out + half;
  ForEachVector<V>(half, [&](int64_t i, auto load, auto store) {
    const typename V::F a = load(low + i);
    const typename V::F b = load(high + i);
    const typename V::F c = load(p.cos + i);
    const typename V::F s = load(p.sin + i);
    store(low + i, V::Fnma(b, s, V::Mul(a, c)));
    store(high + i, V::Fma(a, s, V::Mul(b, c)));
  });
}

// out = x * rsqrt(mean(x^2) + eps) * weight * silu(z); out may be x.
template <typename V>
inline void GatedNorm(const float* x, const float* z, const float* weight, int64_t n, float eps,
                      float* out) {
  const typename V::F scale = V::Set(InverseRms<V>(x, n, eps));
  ForEachVector<V>(n, [&](int64_t i, auto load, auto store) {
    const typename V::F y = V::Mul(V::Mul(load(x + i), scale), load(weight + i));
    store(out + i, V::Mul(y, Silu<V>(load(z + i))));
  });
}

template <typename V>
void SwigluKernel(const float* gate, const float* up, int64_t n, float* out) {
  ForEachVector<V>(n, [&](int64_t i, auto load, auto store) {
    store(out + i, V::Mul(Silu<V>(load(gate + i)), load(up + i)));
  });
}

template <typename V>
void CombineRowKernel(const float* routed, const float* shared, float gate, int64_t n,
                      float* hidden) {
  const typename V::F weight = Sigmoid<V>(V::Set(gate));
  ForEachVector<V>(n, [&](int64_t i, auto load, auto store) {
    const typename V::F sum = V::Fma(weight, load(shared + i), load(routed + i));
    store(hidden + i, V::Add(load(hidden + i), sum));
  });
}

}  // namespace banyan::trunk::cpu
