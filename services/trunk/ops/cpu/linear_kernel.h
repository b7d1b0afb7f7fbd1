// y[r, n] = sum over k of x[r, k] * w[n, k] for a range of outputs n and all rows.
//
// Vectors run along k. Each (row, output) has one accumulator of kLanes lanes, filled in ascending
// k and then summed by one fixed tree, whatever the register tile: so a row's bits depend neither
// on the rows beside it nor on how outputs were split between threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::trunk::cpu {

// Scales: one for each kGroup columns, 0 where there are none. A weight is rounded to f32 after its
// scale.
struct Bf16Weights {
  static constexpr int64_t kBytes = 2;
  static constexpr int64_t kGroup = 0;
  template <typename V>
  static typename V::F Load(const std::byte* p) {
    return V::LoadBf16(p);
  }
  template <typename V>
  static typename V::F LoadN(const std::byte* p, int n) {
    return V::LoadBf16N(p, n);
  }
};

struct Int8Weights {
  static constexpr int64_t kBytes = 1;
  static constexpr int64_t kGroup = kTileInt8GroupColumns;
  template <typename V>
  static typename V::F Load(const std::byte* p) {
    return V::LoadI8(p);
  }
  template <typename V>
  static typename V::F LoadN(const std::byte* p, int n) {
    return V::LoadI8N(p, n);
  }
};

struct F32Weights {
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kGroup = 0;
  template <typename V>
  static typename V::F Load(const std::byte* p) {
    return V::Load(p);
  }
  template <typename V>
  static typename V::F LoadN(const std::byte* p, int n) {
    return V::LoadN(p, n);
  }
};

// Rows of a register tile at most, and outputs whose weights stay in a cache while many rows pass.
inline constexpr int64_t kLinearRows = 6;
inline constexpr int64_t kLinearBlockOutputs = 8;
// Codes are scaled ahead for so many rows or more, of so many columns at most.
inline constexpr int64_t kLinearScaledRows = 3 * kLinearRows;
inline constexpr int64_t kLinearScaledColumns = 4096;
// Columns between two looks at what comes next.
inline constexpr int64_t kLinearAheadColumns = 64;

// R rows x N outputs in registers. `ahead`: weights that come later, as many as these, to ask the
// memory for meanwhile; or null.
template <typename V, typename W, int R, int N>
inline void LinearRegisterTile(const float* x, int64_t ldx, const std::byte* w, const float* scales,
                               int64_t k, const std::byte* ahead, float* y, int64_t ldy) {
  using F = typename V::F;
  static_assert(W::kGroup % V::kLanes == 0 && kLinearAheadColumns % V::kLanes == 0);
  const int64_t groups = W::kGroup == 0 ? 0 : (k + W::kGroup - 1) / W::kGroup;
  const auto scaled = [&](F wv, int n, int64_t i) {
    if constexpr (W::kGroup == 0) {
      return wv;
    } else {
      return V::Mul(wv, V::Set(scales[n * groups + i / W::kGroup]));
    }
  };
  F acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) acc[r][n] = V::Zero();
  }
  const int64_t row_bytes = k * W::kBytes;
  const auto step = [&](int64_t i) {
    F xv[R];
    for (int r = 0; r < R; ++r) xv[r] = V::Load(x + r * ldx + i);
    for (int n = 0; n < N; ++n) {
      const F wv = scaled(W::template Load<V>(w + n * row_bytes + i * W::kBytes), n, i);
      for (int r = 0; r < R; ++r) acc[r][n] = V::Fma(xv[r], wv, acc[r][n]);
    }
  };
  int64_t i = 0;
  for (; i + kLinearAheadColumns <= k; i += kLinearAheadColumns) {
    if (ahead != nullptr) {
      constexpr int64_t kAheadBytes = N * kLinearAheadColumns * W::kBytes;
      for (int64_t at = 0; at < kAheadBytes; at += 64) {
        __builtin_prefetch(ahead + at, /*rw=*/0, /*locality=*/1);
      }
      ahead += kAheadBytes;
    }
    for (int64_t j = 0; j < kLinearAheadColumns; j += V::kLanes) step(i + j);
  }
  for (; i + V::kLanes <= k; i += V::kLanes) step(i);
  if (const int rest = static_cast<int>(k - i); rest > 0) {
    F xv[R];
    for (int r = 0; r < R; ++r) xv[r] = V::LoadN(x + r * ldx + i, rest);
    for (int n = 0; n < N; ++n) {
      const F wv = scaled(W::template LoadN<V>(w + n * row_bytes + i * W::kBytes, rest), n, i);
      for (int r = 0; r < R; ++r) acc[r][n] = V::Fma(xv[r], wv, acc[r][n]);
    }
  }
  for (int r = 0; r < R; ++r) {
    int n = 0;
    for (; n + 4 <= N; n += 4) {
      V::ReduceAdd4(acc[r][n], acc[r][n + 1], acc[r][n + 2], acc[r][n + 3], y + r * ldy + n);
    }
    for (; n < N; ++n) y[r * ldy + n] = V::ReduceAdd(acc[r][n]);
  }
}

// Outputs per register tile for R rows: R * N accumulators and R vectors of x, plus one of w, must
// fit the register file.
template <typename V, int R>
inline constexpr int kLinearOutputs = V::kRegisters == 32 ? (R <= 3 ? 8 : 4)
                                                          : (R == 1 ? 8 : (R <= 3 ? 4 : 2));

// fresh: no rows before these have brought the weights into a cache.
template <typename V, typename W, int R>
inline void LinearRows(const LinearTile& t, bool fresh, const float* x, float* y, int64_t begin,
                       int64_t end) {
  constexpr int kN = kLinearOutputs<V, R>;
  const int64_t row_bytes = t.k * W::kBytes;
  const int64_t groups = W::kGroup == 0 ? 0 : (t.k + W::kGroup - 1) / W::kGroup;
  int64_t n = begin;
  for (; n + kN <= end; n += kN) {
    const bool last = n + 2 * kN > t.end;
    LinearRegisterTile<V, W, R, kN>(x, t.ldx, t.w + n * row_bytes, t.scales + n * groups, t.k,
                                    fresh && !last ? t.w + (n + kN) * row_bytes : nullptr, y + n,
                                    t.ldy);
  }
  for (; n < end; ++n) {
    LinearRegisterTile<V, W, R, 1>(x, t.ldx, t.w + n * row_bytes, t.scales + n * groups, t.k,
                                   /*ahead=*/nullptr, y + n, t.ldy);
  }
}

template <typename V, typename W>
inline void LinearSomeRows(const LinearTile& t, bool fresh, int64_t row, int64_t num_rows,
                           int64_t begin, int64_t end) {
  const float* x = t.x + row * t.ldx;
  float* y = t.y + row * t.ldy;
  switch (num_rows) {
    case 1:
      return LinearRows<V, W, 1>(t, fresh, x, y, begin, end);
    case 2:
      return LinearRows<V, W, 2>(t, fresh, x, y, begin, end);
    case 3:
      return LinearRows<V, W, 3>(t, fresh, x, y, begin, end);
    case 4:
      return LinearRows<V, W, 4>(t, fresh, x, y, begin, end);
    case 5:
      return LinearRows<V, W, 5>(t, fresh, x, y, begin, end);
    default:
      return LinearRows<V, W, 6>(t, fresh, x, y, begin, end);
  }
}

// Rows [first, last) of outputs [begin, end), a register tile after the other.
template <typename V, typename W>
inline void LinearManyRows(const LinearTile& t, bool fresh, int64_t first, int64_t last,
                           int64_t begin, int64_t end) {
  for (int64_t r = first; r < last; r += kLinearRows) {
    LinearSomeRows<V, W>(t, fresh && r == first, r, last - r < kLinearRows ? last - r : kLinearRows,
                         begin, end);
  }
}

// Codes times their scales: once for all rows instead of with every register tile of them.
template <typename V, typename W>
inline void LinearScaled(const LinearTile& t, int64_t first, int64_t last, int64_t begin,
                         int64_t end) {
  alignas(64) float weights[kLinearBlockOutputs * kLinearScaledColumns];
  const int64_t groups = (t.k + W::kGroup - 1) / W::kGroup;
  for (int64_t n = begin; n < end; ++n) {
    const std::byte* codes = t.w + n * t.k * W::kBytes;
    float* out = weights + (n - begin) * t.k;
    int64_t i = 0;
    for (; i + V::kLanes <= t.k; i += V::kLanes) {
      const auto scale = V::Set(t.scales[n * groups + i / W::kGroup]);
      V::Store(out + i, V::Mul(W::template Load<V>(codes + i * W::kBytes), scale));
    }
    if (const int rest = static_cast<int>(t.k - i); rest > 0) {
      const auto scale = V::Set(t.scales[n * groups + i / W::kGroup]);
      V::StoreN(out + i, V::Mul(W::template LoadN<V>(codes + i * W::kBytes, rest), scale), rest);
    }
  }
  LinearTile scaled = t;
  scaled.w = reinterpret_cast<const std::byte*>(weights);
  scaled.scales = nullptr;
  scaled.y = t.y + begin;
  LinearManyRows<V, F32Weights>(scaled, /*fresh=*/false, first, last, 0, end - begin);
}

template <typename V, typename W>
void LinearKernel(const LinearTile& t) {
  if (t.num_rows <= kLinearRows) {
    LinearSomeRows<V, W>(t, /*fresh=*/true, 0, t.num_rows, t.begin, t.end);
    return;
  }
  // Rows in blocks whose activations stay in the second-level cache (half a megabyte), outputs four
  // or eight at a time so that their weights stay in the caches while the block's rows go by.
  constexpr int64_t kBlockFloats = 128 * 1024;
  int64_t block = kBlockFloats / (t.k > 0 ? t.k : 1) / kLinearRows * kLinearRows;
  if (block < kLinearRows) block = kLinearRows;
  for (int64_t first = 0; first < t.num_rows; first += block) {
    const int64_t last = first + block < t.num_rows ? first + block : t.num_rows;
    for (int64_t n = t.begin; n < t.end; n += kLinearBlockOutputs) {
      const int64_t n_end = n + kLinearBlockOutputs < t.end ? n + kLinearBlockOutputs : t.end;
      if constexpr (W::kGroup > 0) {
        if (last - first >= kLinearScaledRows && t.k <= kLinearScaledColumns) {
          LinearScaled<V, W>(t, first, last, n, n_end);
          continue;
        }
      }
      LinearManyRows<V, W>(t, /*fresh=*/true, first, last, n, n_end);
    }
  }
}

}  // namespace banyan::trunk::cpu
