// Functions of f32 vectors, and loops over arrays whose length is no multiple of the lanes.
// V is one of the Vec types. Everything here is a template over V, so that each tier gets its own
// copy compiled for its own instruction set.
#pragma once

#include <cstdint>

namespace banyan::trunk::cpu {

// e^x, relative error below 2e-7; exactly 0 below -87.3 (so for -inf), finite (2.4e38) above 88.3.
// Range reduction x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two parts, then a Taylor
// polynomial of degree 7 in r, whose remainder is below 6e-9.
template <typename V>
inline typename V::F Exp(typename V::F x) {
  using F = typename V::F;
  const F lower = V::Set(-87.3f);
  const F clamped = V::Min(V::Set(88.3f), V::Max(lower, x));
  const F n = V::RoundToInt(V::Mul(clamped, V::Set(1.44269504088896341f)));
  F r = V::Fnma(n, V::Set(0.693359375f), clamped);
  r = V::Fnma(n, V::Set(-2.12194440e-4f), r);
  F p = V::Set(1.0f / 5040.0f);
  p = V::Fma(p, r, V::Set(1.0f / 720.0f));
  p = V::Fma(p, r, V::Set(1.0f / 120.0f));
  p = V::Fma(p, r, V::Set(1.0f / 24.0f));
  p = V::Fma(p, r, V::Set(1.0f / 6.0f));
  p = V::Fma(p, r, V::Set(0.5f));
  p = V::Fma(p, r, V::Set(1.0f));
  p = V::Fma(p, r, V::Set(1.0f));
  return V::ZeroWhereLess(x, lower, V::Scale2(p, n));
}

template <typename V>
inline typename V::F Sigmoid(typename V::F x) {
  const typename V::F one = V::Set(1.0f);
  return V::Div(one, V::Add(one, Exp<V>(V::Sub(V::Zero(), x))));
}

template <typename V>
inline typename V::F Silu(typename V::F x) {
  return V::Mul(x, Sigmoid<V>(x));
}

// Calls body(i, load, store) for i = 0, kLanes, ... < n. `load(p)` and `store(p, x)` touch the
// lanes inside [0, n) only.
template <typename V, typename Body>
inline void ForEachVector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    body(
        i, [](const float* p) { return V::Load(p); },
        [](float* p, typename V::F x) { V::Store(p, x); });
  }
  if (const int rest = static_cast<int>(n - i); rest > 0) {
    body(
        i, [rest](const float* p) { return V::LoadN(p, rest); },
        [rest](float* p, typename V::F x) { V::StoreN(p, x, rest); });
  }
}

}  // namespace banyan::trunk::cpu
