// Gated DeltaNet in chunks of up to 64 tokens (model spec 3.4, chunked form), then the gated norm.
// With G_i the sum of log decays up to row i of the chunk and S the state that enters it:
//   A_ij = beta_i e^(G_i - G_j) (k_i . k_j)  for j < i
//   N    = (I + A)^-1 (beta_i (v_i - e^(G_i) S^T k_i))          by forward substitution
//   o_i  = e^(G_i) S^T q_i + sum over j <= i of e^(G_i - G_j) (q_i . k_j) N_j
//   S    = e^(G_C) S + sum over j of e^(G_C - G_j) k_j N_j^T
// The spec solves for U and W apart and forms N = U - W S; solving once for N is the same and saves
// a triangular solve and a product. A shorter last chunk is computed as such, which equals padding.
#pragma once

#include <cstdint>

#include "services/trunk/ops/cpu/delta_net_decode_kernel.h"
#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/matmul_kernel.h"
#include "services/trunk/ops/cpu/norm_kernel.h"
#include "services/trunk/ops/cpu/vec_math.h"

namespace banyan::trunk::cpu {

template <typename V>
inline void DeltaPrefillChunk(const DeltaHead& p, int64_t first, int64_t rows) {
  using F = typename V::F;
  constexpr int64_t kC = kTileChunkTokens;
  const int64_t dk = p.key_dim;
  const int64_t dv = p.value_dim;
  float* keys_t = p.scratch;            // [dk, kC]
  float* attention = keys_t + dk * kC;  // [kC, kC]: A
  float* output = attention + kC * kC;  // [kC, kC]: weights of N in o
  float* fresh = output + kC * kC;      // [kC, dv]: N
  float* decayed = fresh + kC * dv;     // [kC, dv]: e^(G_C - G_j) N_j
  float* sum = decayed + kC * dv;       // [kC]: G
  float* to_end = sum + kC;             // [kC]: e^(G_C - G_j)
  // The chunk's own copies: rows of the whole layer lie a power of two apart (32 KiB in the 80B
  // model), so that 64 of them fall into the same few sets of every cache.
  float* q = to_end + kC;    // [kC, dk]
  float* k = q + kC * dk;    // [kC, dk]
  float* out = k + kC * dk;  // [kC, dv]

  const float* v = p.v + first * p.ld_qkv;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t from = (first + i) * p.ld_qkv;
    ForEachVector<V>(dk, [&](int64_t d, auto load, auto store) {
      store(q + i * dk + d, load(p.q + from + d));
      store(k + i * dk + d, load(p.k + from + d));
    });
  }
  float total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    total += p.log_decay[(first + i) * p.ld_gates];
    sum[i] = total;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dk; ++d) keys_t[d * kC + i] = k[i * dk + d];
  }

  // Triangles in strips of rows; what lies beyond the diagonal is computed and not read.
  constexpr int64_t kStrip = 16;
  for (int64_t i = 0; i < rows; i += kStrip) {
    const int64_t strip = rows - i < kStrip ? rows - i : kStrip;
    MatmulArgs m{.m = strip, .n = i + strip, .k = dk, .b = keys_t, .ldb = kC, .ldc = kC};
    m.a_row = dk;
    m.a = k + i * dk;
    m.c = attention + i * kC;
    Matmul<V>(m);
    m.a = q + i * dk;
    m.c = output + i * kC;
    Matmul<V>(m);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const F at = V::Set(sum[i]);
    const F beta = V::Set(p.beta[(first + i) * p.ld_gates]);
    float* a = attention + i * kC;
    float* o = output + i * kC;
    ForEachVector<V>(i + 1, [&](int64_t j, auto load, auto store) {
      const F decay = Exp<V>(V::Sub(at, load(sum + j)));
      store(a + j, V::Mul(V::Mul(load(a + j), decay), beta));
      store(o + j, V::Mul(load(o + j), decay));
    });
  }

  Matmul<V>({.m = rows,
             .n = dv,
             .k = dk,
             .a = k,
             .a_row = dk,
             .b = p.state,
             .ldb = dv,
             .c = fresh,
             .ldc = dv});
  for (int64_t i = 0; i < rows; ++i) {
    const F decay = Exp<V>(V::Set(sum[i]));
    const F beta = V::Set(p.beta[(first + i) * p.ld_gates]);
    float* n = fresh + i * dv;
    ForEachVector<V>(dv, [&](int64_t c, auto load, auto store) {
      store(n + c, V::Mul(beta, V::Fnma(decay, load(n + c), load(v + i * p.ld_qkv + c))));
    });
  }
  // Forward substitution: row i loses what the rows above it explain.
  for (int64_t i = 1; i < rows; ++i) {
    float* a = attention + i * kC;
    for (int64_t j = 0; j < i; ++j) a[j] = -a[j];
    Matmul<V>({.m = 1,
               .n = dv,
               .k = i,
               .a = a,
               .b = fresh,
               .ldb = dv,
               .c = fresh + i * dv,
               .ldc = dv,
               .accumulate = true});
  }

  Matmul<V>({.m = rows,
             .n = dv,
             .k = dk,
             .a = q,
             .a_row = dk,
             .b = p.state,
             .ldb = dv,
             .c = out,
             .ldc = dv});
  for (int64_t i = 0; i < rows; ++i) {
    const F decay = Exp<V>(V::Set(sum[i]));
    float* o = out + i * dv;
    ForEachVector<V>(
        dv, [&](int64_t c, auto load, auto store) { store(o + c, V::Mul(decay, load(o + c))); });
    for (int64_t j = i + 1; j < rows; ++j) output[i * kC + j] = 0;
  }
  for (int64_t i = 0; i < rows; i += kStrip) {
    const int64_t strip = rows - i < kStrip ? rows - i : kStrip;
    Matmul<V>({.m = strip,
               .n = dv,
               .k = i + strip,
               .a = output + i * kC,
               .a_row = kC,
               .b = fresh,
               .ldb = dv,
               .c = out + i * dv,
               .ldc = dv,
               .accumulate = true});
  }

  const F at_end = V::Set(total);
  ForEachVector<V>(rows, [&](int64_t j, auto load, auto store) {
    store(to_end + j, Exp<V>(V::Sub(at_end, load(sum + j))));
  });
  for (int64_t j = 0; j < rows; ++j) {
    const F decay = V::Set(to_end[j]);
    ForEachVector<V>(dv, [&](int64_t c, auto load, auto store) {
      store(decayed + j * dv + c, V::Mul(decay, load(fresh + j * dv + c)));
    });
  }
  const F decay = Exp<V>(at_end);
  ForEachVector<V>(dk * dv, [&](int64_t i, auto load, auto store) {
    store(p.state + i, V::Mul(decay, load(p.state + i)));
  });
  Matmul<V>({.m = dk,
             .n = dv,
             .k = rows,
             .a = keys_t,
             .a_row = kC,
             .b = decayed,
             .ldb = dv,
             .c = p.state,
             .ldc = dv,
             .accumulate = true});

  for (int64_t i = 0; i < rows; ++i) {
    GatedNorm<V>(out + i * dv, p.z + (first + i) * p.ld_z, p.norm_weight, dv, p.eps,
                 p.out + (first + i) * p.ld_out);
  }
}

// The segment begins on the grid of chunks.
template <typename V>
void DeltaPrefillKernel(const DeltaHead& p) {
  if (p.fresh) ZeroState<V>(p);
  for (int64_t first = 0; first < p.num_rows; first += kTileChunkTokens) {
    const int64_t left = p.num_rows - first;
    DeltaPrefillChunk<V>(p, first, left < kTileChunkTokens ? left : kTileChunkTokens);
  }
}

}  // namespace banyan::trunk::cpu
