// Causal attention over KV pages with a running softmax, 64 keys at a time on the absolute grid of
// positions: a query row does the same arithmetic whether it is one row of a prompt or a decoding
// row, and whatever rows share its tile.
#pragma once

#include <cstdint>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/matmul_kernel.h"
#include "services/trunk/ops/cpu/vec_math.h"

namespace banyan::trunk::cpu {

inline constexpr float kMinusInfinity = -__builtin_inff();

template <typename V>
inline float ExpOne(float x) {
  float out[V::kLanes];
  V::Store(out, Exp<V>(V::Set(x)));
  return out[0];
}

template <typename V>
inline void ScaleRow(float* x, int64_t n, float scale) {
  const typename V::F s = V::Set(scale);
  ForEachVector<V>(n,
                   [&](int64_t i, auto load, auto store) { store(x + i, V::Mul(s, load(x + i))); });
}

// Scores of one query vector against a page become probabilities against the running maximum.
template <typename V>
inline void SoftmaxStep(float* scores, int64_t visible, int64_t used, float* max, float* sum,
                        float* acc, int64_t head_dim) {
  using F = typename V::F;
  for (int64_t j = visible; j < kTilePageTokens; ++j) scores[j] = kMinusInfinity;
  F top = V::Set(*max);
  for (int64_t j = 0; j < kTilePageTokens; j += V::kLanes) top = V::Max(top, V::Load(scores + j));
  const float new_max = V::ReduceMax(top);
  if (new_max == kMinusInfinity) {  // no key of this page is visible, nor was one before
    for (int64_t j = 0; j < used; ++j) scores[j] = 0;
    return;
  }
  const F shift = V::Set(new_max);
  F total = V::Zero();
  for (int64_t j = 0; j < kTilePageTokens; j += V::kLanes) {
    const F p = Exp<V>(V::Sub(V::Load(scores + j), shift));
    V::Store(scores + j, p);
    total = V::Add(total, p);
  }
  const float keep = ExpOne<V>(*max - new_max);
  *sum = *sum * keep + V::ReduceAdd(total);
  *max = new_max;
  ScaleRow<V>(acc, head_dim, keep);
}

template <typename V>
void AttendKernel(const AttentionTile& p, int64_t begin_page, int64_t end_page,
                  const AttentionSums& sums) {
  const int64_t num = p.num_rows * p.group;
  float* q = p.scratch;                  // [num, head_dim], scaled
  float* scores = q + num * p.head_dim;  // [num, kTilePageTokens]
  for (int64_t r = 0; r < p.num_rows; ++r) {
    for (int64_t h = 0; h < p.group; ++h) {
      const float* from = p.q + r * p.ld_q + h * p.head_stride;
      float* to = q + (r * p.group + h) * p.head_dim;
      const typename V::F scale = V::Set(p.scale);
      ForEachVector<V>(p.head_dim, [&](int64_t i, auto load, auto store) {
        store(to + i, V::Mul(scale, load(from + i)));
      });
    }
  }
  for (int64_t i = 0; i < num; ++i) {
    sums.max[i] = kMinusInfinity;
    sums.sum[i] = 0;
  }
  ForEachVector<V>(num * p.head_dim,
                   [&](int64_t i, auto, auto store) { store(sums.acc + i, V::Zero()); });

  const int64_t last_position = p.first_position + p.num_rows - 1;
  for (int64_t page = begin_page; page < end_page; ++page) {
    const int64_t first_key = page * kTilePageTokens;
    if (first_key > last_position) break;
    // Keys behind the last row of the tile are another sequence's leftovers: never multiplied in.
    int64_t used = last_position - first_key + 1;
    if (used > kTilePageTokens) used = kTilePageTokens;
    const int64_t offset = p.pages[page] * p.page_stride;
    Matmul<V>({.m = num,
               .n = kTilePageTokens,
               .k = p.head_dim,
               .a = q,
               .a_row = p.head_dim,
               .b = p.keys + offset,
               .ldb = kTilePageTokens,
               .c = scores,
               .ldc = kTilePageTokens});
    for (int64_t r = 0; r < p.num_rows; ++r) {
      int64_t visible = p.first_position + r - first_key + 1;
      if (visible > kTilePageTokens) visible = kTilePageTokens;
      if (visible < 0) visible = 0;
      for (int64_t h = 0; h < p.group; ++h) {
        const int64_t i = r * p.group + h;
        SoftmaxStep<V>(scores + i * kTilePageTokens, visible, used, &sums.max[i], &sums.sum[i],
                       sums.acc + i * p.head_dim, p.head_dim);
      }
    }
    Matmul<V>({.m = num,
               .n = p.head_dim,
               .k = used,
               .a = scores,
               .a_row = kTilePageTokens,
               .b = p.values + offset,
               .ldb = p.head_dim,
               .c = sums.acc,
               .ldc = p.head_dim,
               .accumulate = true});
  }
}

template <typename V>
void MergeSumsKernel(const AttentionSums& total, const AttentionSums& part, int64_t num,
                     int64_t head_dim) {
  for (int64_t i = 0; i < num; ++i) {
    if (part.max[i] == kMinusInfinity) continue;  // none of its keys is visible
    const float max = total.max[i] > part.max[i] ? total.max[i] : part.max[i];
    const float keep = ExpOne<V>(total.max[i] - max);
    const float take = ExpOne<V>(part.max[i] - max);
    total.max[i] = max;
    total.sum[i] = total.sum[i] * keep + part.sum[i] * take;
    float* to = total.acc + i * head_dim;
    const float* from = part.acc + i * head_dim;
    const typename V::F vkeep = V::Set(keep);
    const typename V::F vtake = V::Set(take);
    ForEachVector<V>(head_dim, [&](int64_t d, auto load, auto store) {
      store(to + d, V::Fma(vkeep, load(to + d), V::Mul(vtake, load(from + d))));
    });
  }
}

template <typename V>
void FinishAttentionKernel(const AttentionTile& p, const AttentionSums& sums,
                           const AttentionOutput& output) {
  for (int64_t r = 0; r < p.num_rows; ++r) {
    for (int64_t h = 0; h < p.group; ++h) {
      const int64_t i = r * p.group + h;
      const float* acc = sums.acc + i * p.head_dim;
      const float* gate = output.gate + r * output.ld_gate + h * output.head_stride;
      float* out = output.out + r * output.ld_out + h * p.head_dim;
      const typename V::F inverse = V::Set(1.0f / sums.sum[i]);
      ForEachVector<V>(p.head_dim, [&](int64_t d, auto load, auto store) {
        store(out + d, V::Mul(V::Mul(load(acc + d), inverse), Sigmoid<V>(load(gate + d))));
      });
    }
  }
}

}  // namespace banyan::trunk::cpu
