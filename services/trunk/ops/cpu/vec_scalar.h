// Eight f32 lanes in plain C++, for any CPU; products and sums are rounded one by one.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace banyan::trunk::cpu {

struct VecScalar {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  struct F {
    float v[kLanes];
  };

  template <typename Op>
  static F Each(const Op& op) {
    F out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = op(i);
    return out;
  }

  static F Zero() { return Set(0); }
  static F Set(float x) {
    return Each([&](int) { return x; });
  }
  static F Load(const void* p) {
    F out;
    std::memcpy(out.v, p, sizeof(out.v));
    return out;
  }
  static void Store(float* p, const F& x) { std::memcpy(p, x.v, sizeof(x.v)); }
  static F LoadN(const void* p, int n) {
    F out = Zero();
    std::memcpy(out.v, p, static_cast<size_t>(n) * sizeof(float));
    return out;
  }
  static void StoreN(float* p, const F& x, int n) {
    std::memcpy(p, x.v, static_cast<size_t>(n) * sizeof(float));
  }
  static F LoadBf16(const void* p) { return LoadBf16N(p, kLanes); }
  static F LoadBf16N(const void* p, int n) {
    uint16_t bits[kLanes] = {};
    std::memcpy(bits, p, static_cast<size_t>(n) * sizeof(uint16_t));
    uint32_t wide[kLanes];
    for (int i = 0; i < kLanes; ++i) wide[i] = static_cast<uint32_t>(bits[i]) << 16;
    return Load(wide);
  }

  static F LoadI8(const void* p) { return LoadI8N(p, kLanes); }
  static F LoadI8N(const void* p, int n) {
    int8_t codes[kLanes] = {};
    std::memcpy(codes, p, static_cast<size_t>(n));
    return Each([&](int i) { return static_cast<float>(codes[i]); });
  }

  static F Add(const F& a, const F& b) {
    return Each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F Sub(const F& a, const F& b) {
    return Each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F Mul(const F& a, const F& b) {
    return Each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F Div(const F& a, const F& b) {
    return Each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F Fma(const F& a, const F& b, const F& c) {
    return Each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F Fnma(const F& a, const F& b, const F& c) {
    return Each([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
  }
  static F Max(const F& bound, const F& x) {
    return Each([&](int i) { return bound.v[i] > x.v[i] ? bound.v[i] : x.v[i]; });
  }
  static F Min(const F& bound, const F& x) {
    return Each([&](int i) { return bound.v[i] < x.v[i] ? bound.v[i] : x.v[i]; });
  }
  static F RoundToInt(const F& x) {
    return Each([&](int i) { return std::nearbyintf(x.v[i]); });
  }
  static F Scale2(const F& x, const F& n) {
    return Each([&](int i) {
      // A NaN exponent comes with a NaN x.
      return n.v[i] == n.v[i] ? std::ldexp(x.v[i], static_cast<int>(n.v[i])) : x.v[i];
    });
  }
  static F ZeroWhereLess(const F& x, const F& bound, const F& value) {
    return Each([&](int i) { return x.v[i] < bound.v[i] ? 0.0f : value.v[i]; });
  }

  static float ReduceAdd(const F& x) {
    float half[4];
    for (int i = 0; i < 4; ++i) half[i] = x.v[i] + x.v[i + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
  }
  static void ReduceAdd4(const F& a, const F& b, const F& c, const F& d, float out[4]) {
    out[0] = ReduceAdd(a);
    out[1] = ReduceAdd(b);
    out[2] = ReduceAdd(c);
    out[3] = ReduceAdd(d);
  }
  static float ReduceMax(const F& x) {
    float max = x.v[0];
    for (int i = 1; i < kLanes; ++i) max = x.v[i] > max ? x.v[i] : max;
    return max;
  }
};

}  // namespace banyan::trunk::cpu
