// The loops of the expert FFN over a vector type V. Included once by each tier's source, inside its
// target region and namespace, after V's operations: a template compiled for one instruction set
// must not be shared with another.
//
// V:  kLanes; Reg; kMaxRows; Outputs(rows) how many outputs a tile of so many rows holds (divides
//     kOutputTile), so that accumulators, rows and one weight vector fit the registers;
//     Zero, Set1, LoadX (aligned f32), Load<W>, LoadPart<W>(p, n) (n < kLanes, rest 0), Store,
//     Add, Sub, Mul, Div, Min, Max (the second operand when one is NaN), MulAdd(a, b, c) = a*b+c,
//     RoundInt, Pow2(integral reg in [-126, 127]), Reduce4(a, b, c, d, out): the sums of four
//     registers, each in the same order.
// W:  element type of weights, BF16 or float.
//
// No include guard on purpose; the includer has included expert_ffn.h, <cstring> and <algorithm>.

template <class W>
constexpr int64_t kElementBytes = sizeof(W);

// One vector along k from `i` on, for R rows against C outputs.
template <class V, class W, int R, int C>
inline __attribute__((always_inline)) void DotStep(const float* const (&x)[R],
                                                   const std::byte* weights, int64_t stride,
                                                   int64_t i, typename V::Reg (&acc)[R * C]) {
  typename V::Reg xs[R];
  for (int r = 0; r < R; ++r) xs[r] = V::LoadX(x[r] + i);
  for (int c = 0; c < C; ++c) {
    const typename V::Reg w = V::template Load<W>(weights + c * stride + i * kElementBytes<W>);
    for (int r = 0; r < R; ++r) acc[r * C + c] = V::MulAdd(w, xs[r], acc[r * C + c]);
  }
}

// out[r * C + c] = dot(x[r], weights row c) for C rows of weights `stride` bytes apart.
// `prefetch` > 0: asks for the same place so many bytes further on. One matrix row is a page or
// less, too short for the hardware's prefetcher to keep a stream going. Into the second cache
// level: into the first it is held up by that level's few fill buffers (one row, one Zen 4 core:
// 65 % of the read bandwidth instead of 100 %).
template <class V, class W, int R, int C>
inline void Dots(const float* const (&x)[R], const std::byte* weights, int64_t stride, int64_t k,
                 int64_t prefetch, float* out) {
  constexpr int kSteps = 64 / (V::kLanes * kElementBytes<W>) > 0
                             ? static_cast<int>(64 / (V::kLanes * kElementBytes<W>))
                             : 1;
  typename V::Reg acc[R * C];
  for (int j = 0; j < R * C; ++j) acc[j] = V::Zero();
  int64_t i = 0;
  for (; i + kSteps * V::kLanes <= k; i += kSteps * V::kLanes) {
    if (prefetch > 0) {
      for (int c = 0; c < C; ++c) {
        __builtin_prefetch(
            reinterpret_cast<const void*>(
                reinterpret_cast<uintptr_t>(weights) +
                static_cast<uintptr_t>(c * stride + i * kElementBytes<W> + prefetch)),
            /*rw=*/0, /*locality=*/1);
      }
    }
    for (int s = 0; s < kSteps; ++s) {
      DotStep<V, W, R, C>(x, weights, stride, i + s * V::kLanes, acc);
    }
  }
  for (; i + V::kLanes <= k; i += V::kLanes) DotStep<V, W, R, C>(x, weights, stride, i, acc);
  if (i < k) {
    const int rest = static_cast<int>(k - i);
    typename V::Reg xs[R];
    for (int r = 0; r < R; ++r) xs[r] = V::LoadX(x[r] + i);
    for (int c = 0; c < C; ++c) {
      const typename V::Reg w =
          V::template LoadPart<W>(weights + c * stride + i * kElementBytes<W>, rest);
      for (int r = 0; r < R; ++r) acc[r * C + c] = V::MulAdd(w, xs[r], acc[r * C + c]);
    }
  }
  // Missing registers of the last four are the first one again: their sums are not stored.
  for (int j = 0; j < R * C; j += 4) {
    float sums[4];
    V::Reduce4(acc[j], acc[j + 1 < R * C ? j + 1 : j], acc[j + 2 < R * C ? j + 2 : j],
               acc[j + 3 < R * C ? j + 3 : j], sums);
    for (int m = 0; m < 4 && j + m < R * C; ++m) out[j + m] = sums[m];
  }
}

template <class V, int R, int C>
inline void DotsOfType(const float* const (&x)[R], const WeightMatrix& matrix, int64_t first_row,
                       int64_t k, int64_t prefetch, float* out) {
  const std::byte* weights = matrix.data + first_row * matrix.row_stride_bytes;
  if (matrix.type == WeightType::kBF16) {
    Dots<V, BF16, R, C>(x, weights, matrix.row_stride_bytes, k, prefetch, out);
  } else {
    Dots<V, float, R, C>(x, weights, matrix.row_stride_bytes, k, prefetch, out);
  }
}

// How far ahead of output o to prefetch, in outputs: at least one tile and about 4 KiB, so that a
// short row does not make the distance shorter than the memory's latency. 0 at the end.
template <int C>
inline int64_t PrefetchBytes(const WeightMatrix& matrix, int64_t k, int64_t o, int64_t end) {
  const int64_t row_bytes = k * WeightBytes(matrix.type);
  const int64_t tiles = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, row_bytes * C));
  const int64_t ahead = tiles * C;
  return o + ahead < end ? ahead * matrix.row_stride_bytes : 0;
}

#include "services/expert/kernels/silu-inl.h"

template <class V>
void SiluArray(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(Silu<V>(V::LoadUnaligned(x + i)), x + i);
  if (i < n) {
    alignas(64) float part[V::kLanes] = {};
    std::memcpy(part, x + i, static_cast<size_t>(n - i) * sizeof(float));
    V::Store(Silu<V>(V::LoadX(part)), part);
    std::memcpy(x + i, part, static_cast<size_t>(n - i) * sizeof(float));
  }
}

// gate[j] = silu(gate[j]) * up[j]; both hold whole vectors.
template <class V, int N>
inline void SiluTimes(float* gate, const float* up) {
  for (int j = 0; j < N; j += V::kLanes) {
    V::Store(V::Mul(Silu<V>(V::LoadX(gate + j)), V::LoadX(up + j)), gate + j);
  }
}

template <class V, int R, int C>
inline void GateUpTile(const GateUpArgs& a, const float* const (&x)[R], int32_t first_row,
                       int32_t o, bool prefetch) {
  constexpr int kFloats = static_cast<int>(PaddedFloats(R * C));
  alignas(64) float gate[kFloats] = {};
  alignas(64) float up[kFloats] = {};
  const ExpertWeights& w = *a.weights;
  DotsOfType<V, R, C>(x, w.gate_proj, o, a.hidden_size,
                      prefetch ? PrefetchBytes<C>(w.gate_proj, a.hidden_size, o, a.end_output) : 0,
                      gate);
  DotsOfType<V, R, C>(x, w.up_proj, o, a.hidden_size,
                      prefetch ? PrefetchBytes<C>(w.up_proj, a.hidden_size, o, a.end_output) : 0,
                      up);
  SiluTimes<V, kFloats>(gate, up);
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      a.hidden[(first_row + r) * a.hidden_stride + o + c] = gate[r * C + c];
    }
  }
}

template <class V, int R, int C>
inline void DownTile(const DownArgs& a, const float* const (&x)[R], int32_t first_row, int32_t o,
                     bool prefetch) {
  float dots[R * C];
  const WeightMatrix& w = a.weights->down_proj;
  DotsOfType<V, R, C>(x, w, o, a.width,
                      prefetch ? PrefetchBytes<C>(w, a.width, o, a.end_output) : 0, dots);
  for (int r = 0; r < R; ++r) {
    float* const sum = a.sum + a.rows[first_row + r] * a.sum_stride + o;
    const float weight = a.routing_weights[first_row + r];
    // Product and sum round separately in every tier: -ffp-contract is off.
    for (int c = 0; c < C; ++c) sum[c] = (a.add ? sum[c] : 0.0f) + weight * dots[c + r * C];
  }
}

// A block of sums in registers over all rows; two blocks ahead are asked for, of these rows or the
// next ones.
template <class V>
void SumRows(const SumRowsArgs& a) {
  constexpr int kRegs = 8;
  constexpr int64_t kBlock = kRegs * V::kLanes;
  const auto ask = [](const float* at) {
    for (int64_t i = 0; i < kBlock; i += 16) {
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) +
                                                       static_cast<uintptr_t>(i) * sizeof(float)),
                         /*rw=*/0, /*locality=*/1);
    }
  };
  int64_t o = 0;
  for (; o + kBlock <= a.n; o += kBlock) {
    const int64_t ahead = o + 2 * kBlock;
    for (int32_t i = 0; ahead >= a.n && i < a.num_next; ++i) {
      ask(a.rows + a.next[i] * a.stride + (ahead - a.n));
    }
    typename V::Reg sum[kRegs];
    for (int j = 0; j < kRegs; ++j) sum[j] = V::Zero();
    for (int32_t i = 0; i < a.num; ++i) {
      const float* const row = a.rows + a.which[i] * a.stride + o;
      if (ahead < a.n) ask(row + 2 * kBlock);
      for (int j = 0; j < kRegs; ++j) {
        sum[j] = V::Add(sum[j], V::LoadUnaligned(row + j * V::kLanes));
      }
    }
    for (int j = 0; j < kRegs; ++j) V::Store(sum[j], a.out + o + j * V::kLanes);
  }
  for (; o < a.n; ++o) {
    float sum = 0;
    for (int32_t i = 0; i < a.num; ++i) sum += a.rows[a.which[i] * a.stride + o];
    a.out[o] = sum;
  }
}

struct GateUpPart {
  using Args = GateUpArgs;
  static const float* Row(const Args& a, int32_t i) { return a.x + a.rows[i] * a.x_stride; }
  template <class V, int R, int C>
  static void Tile(const Args& a, const float* const (&x)[R], int32_t i, int32_t o, bool prefetch) {
    GateUpTile<V, R, C>(a, x, i, o, prefetch);
  }
};

struct DownPart {
  using Args = DownArgs;
  static const float* Row(const Args& a, int32_t i) { return a.hidden + i * a.hidden_stride; }
  template <class V, int R, int C>
  static void Tile(const Args& a, const float* const (&x)[R], int32_t i, int32_t o, bool prefetch) {
    DownTile<V, R, C>(a, x, i, o, prefetch);
  }
};

// Rows [i, i + R) against outputs [o, end), tiles of C outputs, then single ones.
template <class V, class Part, int R>
void RowGroup(const typename Part::Args& a, int32_t i, int32_t o, int32_t end, bool prefetch) {
  constexpr int C = V::Outputs(R);
  const float* x[R];
  for (int r = 0; r < R; ++r) x[r] = Part::Row(a, i + r);
  for (; o + C <= end; o += C) Part::template Tile<V, R, C>(a, x, i, o, prefetch);
  for (; o < end; ++o) Part::template Tile<V, R, 1>(a, x, i, o, prefetch);
}

template <class V, class Part, int R>
inline void RowGroupOfSize(const typename Part::Args& a, int32_t rows, int32_t i, int32_t o,
                           int32_t end, bool prefetch) {
  if (rows == R) {
    RowGroup<V, Part, R>(a, i, o, end, prefetch);
  } else if constexpr (R > 1) {
    RowGroupOfSize<V, Part, R - 1>(a, rows, i, o, end, prefetch);
  }
}

// Outputs kOutputTile at a time, all rows against each: the weights come from memory once and stay
// in the first cache level while the rows pass. Rows go in groups of nearly equal size.
template <class V, class Part>
void Run(const typename Part::Args& a) {
  const int32_t groups = (a.num_rows + V::kMaxRows - 1) / V::kMaxRows;
  if (groups == 1) {
    RowGroupOfSize<V, Part, V::kMaxRows>(a, a.num_rows, 0, a.first_output, a.end_output, true);
    return;
  }
  for (int32_t o = a.first_output; o < a.end_output; o += kOutputTile) {
    const int32_t end = std::min(o + kOutputTile, a.end_output);
    int32_t i = 0;
    for (int32_t g = 0; g < groups; ++g) {
      const int32_t next = static_cast<int32_t>(int64_t{a.num_rows} * (g + 1) / groups);
      RowGroupOfSize<V, Part, V::kMaxRows>(a, next - i, i, o, end, g == 0);
      i = next;
    }
  }
}

template <class V>
void GateUp(const GateUpArgs& args) {
  Run<V, GateUpPart>(args);
}

template <class V>
void Down(const DownArgs& args) {
  Run<V, DownPart>(args);
}
