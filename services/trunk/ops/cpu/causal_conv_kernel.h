// Causal depthwise convolution with carried state, SiLU and, for queries and keys, the l2 norm of
// the head (model spec 3.4 steps 2, 5, 6).
#pragma once

#include <cstdint>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/norm_kernel.h"
#include "services/trunk/ops/cpu/vec_math.h"

namespace banyan::trunk::cpu {

// The column `row` of the input; negative rows lie in the state; null: zeros.
template <typename V>
inline const float* ConvColumn(const ConvHead& p, int64_t row) {
  if (row >= 0) return p.in + row * p.ld_in;
  if (p.fresh) return nullptr;
  return p.state + (row + p.taps - 1) * p.ld_channels;
}

template <typename V>
void ConvHeadKernel(const ConvHead& p) {
  constexpr float kL2NormEps = 1e-6f;  // added to the sum of squares
  for (int64_t row = 0; row < p.num_rows; ++row) {
    float* out = p.out + row * p.ld_out;
    ForEachVector<V>(p.width, [&](int64_t i, auto load, auto store) {
      typename V::F acc = V::Zero();
      for (int64_t j = 0; j < p.taps; ++j) {
        const float* column = ConvColumn<V>(p, row - p.taps + 1 + j);
        if (column == nullptr) continue;
        acc = V::Fma(load(p.weight + j * p.ld_channels + i), load(column + i), acc);
      }
      store(out + i, Silu<V>(acc));
    });
    if (p.normalize) {
      const float norm = 1.0f / __builtin_sqrtf(SumOfSquares<V>(out, p.width) + kL2NormEps);
      const typename V::F scale = V::Set(norm * p.scale);
      ForEachVector<V>(p.width, [&](int64_t i, auto load, auto store) {
        store(out + i, V::Mul(load(out + i), scale));
      });
    }
  }
  // The state becomes the last taps - 1 columns. Ascending: a column that moves within the state
  // comes from a later place, which is not yet overwritten.
  for (int64_t j = 0; j + 1 < p.taps; ++j) {
    const float* column = ConvColumn<V>(p, p.num_rows - p.taps + 1 + j);
    float* to = p.state + j * p.ld_channels;
    ForEachVector<V>(p.width, [&](int64_t i, auto load, auto store) {
      store(to + i, column == nullptr ? V::Zero() : load(column + i));
    });
  }
}

}  // namespace banyan::trunk::cpu
