// The portable tier: four lanes in plain C++, product and sum rounded separately.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "services/expert/kernels/expert_ffn.h"

namespace banyan::expert {
namespace {
namespace scalar {

struct V {
  static constexpr int kLanes = 4;
  static constexpr int kMaxRows = 2;
  static constexpr int Outputs(int) { return 2; }
  struct Reg {
    float lane[kLanes];
  };

  static Reg Zero() { return Reg{}; }
  static Reg Set1(float value) { return Reg{{value, value, value, value}}; }
  static Reg LoadX(const float* p) { return LoadUnaligned(p); }
  static Reg LoadUnaligned(const float* p) {
    Reg out;
    std::memcpy(&out, p, sizeof(out));
    return out;
  }
  template <class W>
  static Reg Load(const std::byte* p) {
    return LoadPart<W>(p, kLanes);
  }
  template <class W>
  static Reg LoadPart(const std::byte* p, int n) {
    W raw[kLanes] = {};
    std::memcpy(raw, p, static_cast<size_t>(n) * sizeof(W));
    Reg out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = Widen(raw[i]);
    return out;
  }
  static float Widen(BF16 value) { return ToFloat(value); }
  static float Widen(float value) { return value; }
  static void Store(Reg a, float* p) { std::memcpy(p, &a, sizeof(a)); }

  static Reg Add(Reg a, Reg b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static Reg Sub(Reg a, Reg b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
  static Reg Mul(Reg a, Reg b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
  static Reg Div(Reg a, Reg b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] /= b.lane[i];
    return a;
  }
  static Reg Min(Reg a, Reg b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static Reg Max(Reg a, Reg b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static Reg MulAdd(Reg a, Reg b, Reg c) { return Add(Mul(a, b), c); }
  static Reg RoundInt(Reg a) {
    for (float& value : a.lane) value = std::nearbyint(value);
    return a;
  }
  static Reg Pow2(Reg n) {
    for (float& value : n.lane) {
      // A NaN stays out of the conversion; it is in the polynomial already.
      const int32_t exponent = value == value ? static_cast<int32_t>(value) : 0;
      value = std::bit_cast<float>((exponent + 127) << 23);
    }
    return n;
  }
  static void Reduce4(Reg a, Reg b, Reg c, Reg d, float* out) {
    out[0] = Sum(a);
    out[1] = Sum(b);
    out[2] = Sum(c);
    out[3] = Sum(d);
  }
  static float Sum(Reg a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
};

#include "services/expert/kernels/ffn_tile-inl.h"

void WidenArray(const std::byte* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    BF16 value;
    std::memcpy(&value, in + i * 2, 2);
    out[i] = ToFloat(value);
  }
}

void NarrowArray(const float* in, int64_t n, BF16* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = ToBF16(in[i]);
}

}  // namespace scalar
}  // namespace

const FfnKernels kScalarKernels = {
    .name = "scalar",
    .lanes = scalar::V::kLanes,
    .fused = false,
    .gate_up = scalar::GateUp<scalar::V>,
    .down = scalar::Down<scalar::V>,
    .silu = scalar::SiluArray<scalar::V>,
    .widen = scalar::WidenArray,
    .narrow = scalar::NarrowArray,
    .sum_rows = scalar::SumRows<scalar::V>,
};

}  // namespace banyan::expert
