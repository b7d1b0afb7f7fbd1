// Gated DeltaNet, token by token (model spec 3.4 step 7), then the gated norm (step 8):
//   r = e^g S^T k;  u = beta (v - r);  S = e^g S + k u^T;  o = S^T q
// Columns of the state are independent of each other, so a group of them goes through all tokens
// while it lies in the first-level cache.
#pragma once

#include <cstdint>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/norm_kernel.h"
#include "services/trunk/ops/cpu/vec_math.h"

namespace banyan::trunk::cpu {

// G vectors of columns from column n; `load`, `store` as in ForEachVector.
template <typename V, int G, typename Load, typename Store>
inline void DeltaDecodeColumns(const DeltaHead& p, int64_t n, const Load& load,
                               const Store& store) {
  using F = typename V::F;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    const float* q = p.q + row * p.ld_qkv;
    const float* k = p.k + row * p.ld_qkv;
    const float* v = p.v + row * p.ld_qkv + n;
    const F decay = Exp<V>(V::Set(p.log_decay[row * p.ld_gates]));
    const F beta = V::Set(p.beta[row * p.ld_gates]);
    F recall[G];
    for (int g = 0; g < G; ++g) recall[g] = V::Zero();
    for (int64_t d = 0; d < p.key_dim; ++d) {
      const F kd = V::Set(k[d]);
      const float* s = p.state + d * p.value_dim + n;
      for (int g = 0; g < G; ++g) recall[g] = V::Fma(kd, load(s + g * V::kLanes), recall[g]);
    }
    F update[G];
    F out[G];
    for (int g = 0; g < G; ++g) {
      update[g] = V::Mul(beta, V::Fnma(decay, recall[g], load(v + g * V::kLanes)));
      out[g] = V::Zero();
    }
    for (int64_t d = 0; d < p.key_dim; ++d) {
      const F kd = V::Set(k[d]);
      const F qd = V::Set(q[d]);
      float* s = p.state + d * p.value_dim + n;
      for (int g = 0; g < G; ++g) {
        const F next = V::Fma(kd, update[g], V::Mul(decay, load(s + g * V::kLanes)));
        store(s + g * V::kLanes, next);
        out[g] = V::Fma(qd, next, out[g]);
      }
    }
    float* o = p.out + row * p.ld_out + n;
    for (int g = 0; g < G; ++g) store(o + g * V::kLanes, out[g]);
  }
}

template <typename V>
inline void ZeroState(const DeltaHead& p) {
  ForEachVector<V>(p.key_dim * p.value_dim,
                   [&](int64_t i, auto, auto store) { store(p.state + i, V::Zero()); });
}

template <typename V>
void DeltaDecodeKernel(const DeltaHead& p) {
  if (p.fresh) ZeroState<V>(p);
  constexpr int kG = V::kRegisters == 32 ? 8 : 4;
  const auto load = [](const float* s) { return V::Load(s); };
  const auto store = [](float* s, typename V::F x) { V::Store(s, x); };
  int64_t n = 0;
  for (; n + kG * V::kLanes <= p.value_dim; n += kG * V::kLanes) {
    DeltaDecodeColumns<V, kG>(p, n, load, store);
  }
  for (; n + V::kLanes <= p.value_dim; n += V::kLanes) {
    DeltaDecodeColumns<V, 1>(p, n, load, store);
  }
  if (const int rest = static_cast<int>(p.value_dim - n); rest > 0) {
    DeltaDecodeColumns<V, 1>(
        p, n, [rest](const float* s) { return V::LoadN(s, rest); },
        [rest](float* s, typename V::F x) { V::StoreN(s, x, rest); });
  }
  for (int64_t row = 0; row < p.num_rows; ++row) {
    float* o = p.out + row * p.ld_out;
    GatedNorm<V>(o, p.z + row * p.ld_z, p.norm_weight, p.value_dim, p.eps, o);
  }
}

}  // namespace banyan::trunk::cpu
