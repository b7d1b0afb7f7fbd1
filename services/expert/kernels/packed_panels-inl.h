// The structure that the AVX-512 and AMX tiers share for the formats bf16 and nf4: rows in blocks,
// panels in order, SiLU, the hidden row, the weighted sum. Included once by each tier's source
// inside its target region and namespace, after rows_bf16-inl.h or rows_f32-inl.h; no include guard
// on purpose. The includer has included <immintrin.h>, <algorithm>, <cstring>, <utility>, check.h,
// bf16.h, nf4.h and packed_ffn.h.
//
// T:  kTier, kPanels (1 or 2: how many panels a call of Panels takes), kTileScratchBytes (of
//     PanelArgs::scratch)
//     Rows: how rows are prepared, BF16Rows or F32Rows
//     kTiledHidden: hidden rows lie as T wants them and T does what Parts' Done does:
//     Done(part, args, i, num_streams, first_row); else Panels leaves its sums in PanelArgs::acc
//     HiddenRows(num_rows): as hidden_rows of packed_ffn.h
//     BlockRows(k): rows that share a pass over the weights, at most kBlockRows
//     BeginRows(args), EndRows(): around the panels of a block; args.weights: the first ones
//     Panels<F>(args): see PanelArgs
//     RowSteps(num_rows, k): steps of PanelArgs::rows_ahead that a call of Panels takes
//
// Rows: kStepBytes of 32 inputs, Put(x, out) prepares so many. A prepared row holds
// NumChunks(k) * kChunkInputs inputs, zero from k on.

#include "common/cpu/lines_ahead-inl.h"
#include "services/expert/kernels/silu-inl.h"
#include "services/expert/kernels/vector_avx512-inl.h"

inline constexpr int32_t kBlockRows = kMaxPassRows;
inline constexpr int64_t kStepInputs = 32;  // of a 64-byte vector of bf16

// Inputs that kernels walk over: prepared rows have so many.
constexpr int64_t PaddedInputs(int64_t k) { return NumChunks(k) * kChunkInputs; }

// acc[p][r][o] = dot(rows[r], output o of panel p), for num_rows <= kBlockRows rows.
struct PanelArgs {
  int num_panels = 0;
  const std::byte* weights[2] = {};  // of each panel
  int32_t num_outputs[2] = {};       // that the matrix has there, <= kPanelOutputs
  const std::byte* next[2] = {};     // the panels that come next, or nulls
  int64_t k = 0;
  int64_t panel_bytes = 0;
  bool cold = false;  // nobody has asked the memory for these panels
  bool warm = false;  // they are in the cache: other rows have passed
  const std::byte* const* rows = nullptr;
  int32_t num_rows = 0;
  int32_t call_rows = 0;              // of all blocks
  const std::byte* hidden = nullptr;  // of down, kTiledHidden: from the first row on
  int64_t hidden_stride = 0;
  RowsAhead* rows_ahead = nullptr;  // of what runs after the last panels
  float* acc = nullptr;             // [2][kBlockRows][kPanelOutputs]
  std::byte* scratch = nullptr;
};
inline constexpr int64_t kAccPanel = kBlockRows * kPanelOutputs;

// Into the second cache level, see ffn_tile-inl.h.
inline __attribute__((always_inline)) void AskFor(uintptr_t at) {
  __builtin_prefetch(reinterpret_cast<const void*>(at), /*rw=*/0, /*locality=*/1);
}

// Asks for a stretch of memory, evenly over a number of steps; see RowsAhead.
class Ahead {
 public:
  Ahead(const std::byte* data, int64_t bytes, int64_t steps)
      : at_(reinterpret_cast<uintptr_t>(data)),
        left_(data == nullptr ? 0 : bytes / 64),
        lines_((left_ + std::max<int64_t>(1, steps) - 1) / std::max<int64_t>(1, steps)) {}
  inline __attribute__((always_inline)) void Step() {
    for (int64_t n = std::min(lines_, left_); n > 0; --n) {
      AskFor(at_);
      at_ += 64;
      --left_;
    }
  }

 private:
  uintptr_t at_;
  int64_t left_;
  int64_t lines_;
};

template <class T>
int64_t RowBytes(int64_t k) {
  return PaddedInputs(k) / kStepInputs * T::Rows::kStepBytes;
}

template <class T>
void PrepareRow(const float* x, int64_t k, std::byte* out) {
  for (int64_t i = 0; i < PaddedInputs(k); i += kStepInputs, out += T::Rows::kStepBytes) {
    const int64_t n = k - i;
    if (n >= kStepInputs) {
      T::Rows::Put(x + i, out);
    } else {
      float part[kStepInputs] = {};
      if (n > 0) std::memcpy(part, x + i, static_cast<size_t>(n) * sizeof(float));
      T::Rows::Put(part, out);
    }
  }
}

struct BF16Format {
  static constexpr PoolFormat kFormat = PoolFormat::kBF16;
  static int64_t PanelBytes(int64_t k) { return kPanelOutputs * k * 2; }
};

struct NF4Format {
  static constexpr PoolFormat kFormat = PoolFormat::kNF4;
  static int64_t PanelBytes(int64_t k) { return NumChunks(k) * kNF4ChunkBytes; }
};

// A stream is one panel of one matrix, in the order in which panels are worked through. Here gate
// panels are even streams, up panels odd ones.
template <class T>
struct GateUpPart {
  using Args = PackedGateUpArgs;
  static constexpr int kStreams = 2;  // that Done needs

  GateUpPart(const Args& args, float* hidden_chunk) : a(args), hidden(hidden_chunk) {}
  int64_t K() const { return a.hidden_size; }
  int32_t NumStreams() const { return 2 * (a.end_panel - a.first_panel); }
  static const std::byte* Matrix(const PackedExpert& expert, int32_t i) {
    return i % 2 == 0 ? expert.gate_proj : expert.up_proj;
  }
  static int32_t Panels(int32_t i) { return i / 2; }
  int64_t NumOutputs() const { return a.width; }
  const std::byte* Row(int32_t i) const { return a.x + a.rows[i] * a.x_stride; }
  const std::byte* Hidden(int32_t) const { return nullptr; }
  RowsAhead NextRows(int64_t steps) const {
    return {a.x, a.next_rows, a.x_stride, a.num_next_rows, RowBytes<T>(a.hidden_size), steps};
  }

  // Streams i and i + 1 of rows [first_row, first_row + n) are done.
  void Done(int32_t i, int, int32_t first_row, int32_t n, float* acc) {
    const int32_t panel = a.first_panel + Panels(i);
    const int64_t column = panel % kGateUpPanels * kPanelOutputs;
    // Beyond the width a row-major matrix has no outputs; acc is undefined there.
    const int64_t outputs = std::min<int64_t>(kPanelOutputs, a.width - panel * kPanelOutputs);
    const auto mask = static_cast<__mmask16>((1u << outputs) - 1u);
    for (int32_t r = 0; r < n; ++r) {
      const float* const gate = acc + r * kPanelOutputs;
      const __m512 value = _mm512_mul_ps(Silu<V>(V::LoadX(gate)), V::LoadX(gate + kAccPanel));
      V::Store(_mm512_maskz_mov_ps(mask, value), hidden + r * kChunkInputs + column);
    }
    if (panel % kGateUpPanels != kGateUpPanels - 1 && panel + 1 != a.end_panel) return;
    const int64_t chunk = panel / kGateUpPanels;
    for (int32_t r = 0; r < n; ++r) {
      float* const values = hidden + r * kChunkInputs;
      std::fill(values + column + kPanelOutputs, values + kChunkInputs, 0.0f);
      constexpr int64_t kStepBytes = T::Rows::kStepBytes;
      std::byte* const row = a.hidden + (first_row + r) * a.hidden_stride + chunk * 2 * kStepBytes;
      T::Rows::Put(values, row);
      T::Rows::Put(values + kStepInputs, row + kStepBytes);
    }
  }
  void Expect(int32_t, int, int32_t, int32_t) const {}

  const Args& a;
  float* const hidden;  // [kBlockRows][kChunkInputs]
};

template <class T>
struct DownPart {
  using Args = PackedDownArgs;
  static constexpr int kStreams = 1;

  DownPart(const Args& args, float*) : a(args) {}
  int64_t K() const { return a.width; }
  int32_t NumStreams() const { return a.end_panel - a.first_panel; }
  static const std::byte* Matrix(const PackedExpert& expert, int32_t) { return expert.down_proj; }
  static int32_t Panels(int32_t i) { return i; }
  int64_t NumOutputs() const { return a.hidden_size; }
  const std::byte* Row(int32_t i) const { return Hidden(i); }
  const std::byte* Hidden(int32_t i) const { return a.hidden + i * a.hidden_stride; }
  RowsAhead NextRows(int64_t steps) const {
    return {a.next_hidden, nullptr, a.hidden_stride, a.num_next_rows, RowBytes<T>(a.width), steps};
  }

  float* Sum(int32_t row, int32_t i) const {
    return a.sum + a.rows[row] * a.sum_stride + int64_t{a.first_panel + i} * kPanelOutputs;
  }
  // Asks for where Done will write: rows are scattered, nothing else foresees them.
  void Expect(int32_t i, int num_streams, int32_t first_row, int32_t n) const {
    for (int32_t r = first_row; r < first_row + n; ++r) {
      for (int p = 0; p < num_streams; ++p) {
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(Sum(r, i)) +
                                                         static_cast<uintptr_t>(p * kPanelOutputs) *
                                                             sizeof(float)),
                           1);
      }
    }
  }
  void Done(int32_t i, int num_streams, int32_t first_row, int32_t n, float* acc) {
    for (int p = 0; p < num_streams; ++p) {
      for (int32_t r = 0; r < n; ++r) {
        Put(first_row + r, i + p, V::LoadX(acc + p * kAccPanel + r * kPanelOutputs));
      }
    }
  }
  // What stream i gives a row.
  inline __attribute__((always_inline)) void Put(int32_t row, int32_t i, __m512 value) const {
    const int64_t outputs = std::min<int64_t>(
        kPanelOutputs, a.hidden_size - int64_t{a.first_panel + i} * kPanelOutputs);
    const auto mask = static_cast<__mmask16>((1u << outputs) - 1u);
    float* const sum = Sum(row, i);
    const __m512 product = _mm512_mul_ps(_mm512_set1_ps(a.routing_weights[row]), value);
    const __m512 before = _mm512_maskz_loadu_ps(a.add ? mask : __mmask16{0}, sum);
    _mm512_mask_storeu_ps(sum, mask, _mm512_add_ps(before, product));
  }

  const Args& a;
};

// Sums of two panels, and rows of a chunk of hidden vectors.
inline constexpr int64_t kPartScratchBytes =
    (2 * kAccPanel + kBlockRows * kChunkInputs) * int64_t{sizeof(float)};

template <class T, class F, class Part>
void Run(const typename Part::Args& args) {
  std::byte* scratch = args.scratch;
  PanelArgs a;
  float* hidden = nullptr;
  if constexpr (!T::kTiledHidden) {
    a.acc = reinterpret_cast<float*>(scratch);
    hidden = a.acc + 2 * kAccPanel;
    scratch += kPartScratchBytes;
  }
  a.scratch = scratch;

  Part part(args, hidden);
  a.call_rows = args.num_rows;
  a.hidden_stride = args.hidden_stride;
  a.k = part.K();
  CHECK(a.k <= kMaxPackedInputs);
  a.panel_bytes = F::PanelBytes(a.k);
  const int32_t streams = part.NumStreams();
  const int32_t block_rows = T::BlockRows(a.k);
  const auto stream = [&](int32_t i) -> const std::byte* {
    if (i < streams) {
      return Part::Matrix(*args.weights, i) + (args.first_panel + Part::Panels(i)) * a.panel_bytes;
    }
    i -= streams;
    return args.next == nullptr
               ? nullptr
               : Part::Matrix(*args.next, i) + (args.next_panel + Part::Panels(i)) * a.panel_bytes;
  };
  const auto outputs = [&](int32_t i) {
    return static_cast<int32_t>(std::min<int64_t>(
        kPanelOutputs, part.NumOutputs() - (args.first_panel + Part::Panels(i)) * kPanelOutputs));
  };
  float* const acc = a.acc;
  for (int32_t first_row = 0; first_row < args.num_rows; first_row += block_rows) {
    const int32_t n = std::min(block_rows, args.num_rows - first_row);
    const std::byte* rows[kBlockRows];
    for (int32_t r = 0; r < n; ++r) rows[r] = part.Row(first_row + r);
    a.rows = rows;
    a.num_rows = n;
    if constexpr (T::kTiledHidden) a.hidden = part.Hidden(first_row);
    const int step = T::kPanels == 2 || Part::kStreams == 2 ? 2 : 1;
    const bool last_rows = first_row + n == args.num_rows;
    const int64_t calls = (streams + T::kPanels - 1) / T::kPanels;
    RowsAhead rows_ahead = last_rows ? part.NextRows(calls * T::RowSteps(n, a.k)) : RowsAhead();
    a.rows_ahead = &rows_ahead;
    for (int32_t i = 0; i < streams; i += step) {
      const int num = std::min(step, streams - i);
      part.Expect(i, num, first_row, n);
      for (int p = 0; p < num; p += T::kPanels) {
        a.num_panels = std::min(T::kPanels, num - p);
        for (int j = 0; j < a.num_panels; ++j) {
          a.weights[j] = stream(i + p + j);
          a.num_outputs[j] = outputs(i + p + j);
          a.next[j] = first_row == 0 ? stream(i + p + j + a.num_panels) : nullptr;
        }
        a.cold = first_row == 0 && i + p == 0;
        a.warm = first_row > 0;
        if constexpr (!T::kTiledHidden) a.acc = acc + p * kAccPanel;
        if (i + p == 0) T::BeginRows(a);
        T::template Panels<F>(a);
      }
      if constexpr (T::kTiledHidden) {
        T::Done(part, a, i, num, first_row);
      } else {
        part.Done(i, num, first_row, n, acc);
      }
    }
    T::EndRows();
  }
}

template <class T>
inline constexpr int64_t kScratchOf =
    (T::kTiledHidden ? 0 : kPartScratchBytes) + T::kTileScratchBytes;

template <class T, class F>
constexpr PackedKernels MakeKernels(Precision precision) {
  static_assert(kScratchOf<T> <= 1 << 20);
  return {
      .tier = T::kTier,
      .format = F::kFormat,
      .precision = precision,
      .scratch_bytes = kScratchOf<T>,
      .row_bytes = RowBytes<T>,
      .hidden_rows = T::HiddenRows,
      .prepare = PrepareRow<T>,
      .gate_up = Run<T, F, GateUpPart<T>>,
      .down = Run<T, F, DownPart<T>>,
      .enter_thread = nullptr,
  };
}
