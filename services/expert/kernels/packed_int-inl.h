// The structure that all tiers of the integer pool formats share: rows in blocks, panels in tiles,
// the reading ahead, SiLU, preparing the hidden row, the weighted sum. Included once by each tier's
// source inside its target region and namespace, after T's operations.
//
// T:  V, for Silu (silu-inl.h); kValueBytes<F, E>, of a prepared input (packed_int_row.h);
//     kTier, kScratchBytes
//     GroupRows<F>(E, num_rows): rows of a group at most, in a block of so many
//     BlockRows(E, chunks): rows of a block at most, so that the scratch holds what Begin keeps
//     Begin<F, E>(BlockArgs), End<F, E>(BlockArgs): around the panels of a block of rows
//     Panels(E, num_rows): panels (1, 2 or 4) of a tile of so many rows
//     RunPanels<F, E, P>(PanelsArgs): false to have RunTile cut the panels into calls of Tile
//     PrepareGroup<F, E>(x, row, layout, group): 32 floats into group `group` of a prepared row
//     Tile<F, E, P>(TileArgs): see there
// F:  format: kFormat, kChunkBytes, kScales (offset in a chunk), kOffset (stored value minus q)
//
// Order of work. A tile is P panels (gate and up side by side, or neighbours of down) against all
// rows of a block. One group of rows: chunks stream through, asking for memory 8 KiB ahead in all
// over the P streams, at a panel's end for the panels that follow. Several groups of rows: k is cut
// into regions that stay in the caches while the groups pass, each of which asks for its share of
// the next region; so memory is busy while the rows compute. Regions of 8 chunks: 2 % slower.
//
// No include guard on purpose; the includer has included packed_int_row.h, int4_block.h,
// int8_block.h, <algorithm>, <cstring> and <limits>.

#include "common/cpu/lines_ahead-inl.h"
#include "services/expert/kernels/silu-inl.h"

struct Int8 {
  static constexpr PoolFormat kFormat = PoolFormat::kInt8;
  static constexpr int64_t kChunkBytes = kInt8ChunkBytes;
  static constexpr int64_t kScales = kInt8ChunkScales;
  static constexpr int32_t kOffset = kInt8Offset;
};

struct Int4 {
  static constexpr PoolFormat kFormat = PoolFormat::kInt4;
  static constexpr int64_t kChunkBytes = kInt4ChunkBytes;
  static constexpr int64_t kScales = kInt4ChunkScales;
  static constexpr int32_t kOffset = kInt4Offset;
};

inline constexpr int kMaxPanels = 4;
// Rows that share a pass over the weights: bounds the scratch.
inline constexpr int32_t kBlockRows = kMaxPassRows;
inline constexpr int64_t kRegionChunks = 16;  // int8, two panels: 35 KiB
inline constexpr int64_t kAheadBytes = 8192;  // of all streams together
// Scratch that Run takes for itself: accumulators and a chunk of the hidden rows.
inline constexpr int64_t kRunBytes =
    kBlockRows * (kMaxPanels * kPanelOutputs + kChunkInputs) * int64_t{sizeof(float)};

template <class F>
constexpr int64_t kChunkLines = F::kChunkBytes / 64;

// Rows of a block in `num_groups` groups of nearly equal size.
struct RowGroups {
  int32_t num_rows;
  int32_t num_groups;
  int32_t First(int32_t group) const {
    return static_cast<int32_t>(int64_t{num_rows} * group / num_groups);
  }
  int32_t Size(int32_t group) const { return First(group + 1) - First(group); }
};

// A block of rows.
struct BlockArgs {
  const std::byte* const* rows = nullptr;
  RowGroups groups = {};
  const IntRowLayout* layout = nullptr;
  int64_t chunks = 0;
  std::byte* scratch = nullptr;  // all but Run's own
};

// acc[p][r][0, 16) += the dot products of chunks [first_chunk, first_chunk + num_chunks) for P
// panels and num_rows <= GroupRows rows.
struct TileArgs {
  const std::byte* const* rows = nullptr;  // [num_rows] prepared rows
  int32_t num_rows = 0;
  const IntRowLayout* layout = nullptr;
  int64_t first_chunk = 0;
  int64_t num_chunks = 0;
  const std::byte* weights[kMaxPanels] = {};  // of each panel, where first_chunk stands
  const std::byte* ahead[kMaxPanels] = {};    // to ask the memory for: num_chunks * ahead_lines
  int64_t ahead_lines = 0;                    // lines of each panel
  float* acc = nullptr;                       // row r of panel p at acc + p * acc_panel + r * 16
  int64_t acc_panel = 0;
  std::byte* scratch = nullptr;  // as BlockArgs has it
};

// What RunPanels keeps from panels to panels of a block.
struct PanelsState {
  const std::byte* ready = nullptr;  // these panels' first region is unpacked,
  int buffer = 0;                    // in this one of two places
};

// P panels from tile.weights on against all rows of a block. `next`: P panels that follow, of this
// call or the next one, or nulls. `cold`: nobody has asked for the first chunks; `warm`: all is in
// the cache. rows_ahead takes a step for each (panel, group of rows, chunk).
struct PanelsArgs {
  const BlockArgs& block;
  const TileArgs& tile;
  const std::byte* const (&next)[kMaxPanels];
  bool cold;
  bool warm;
  bool next_own;  // `next` is of this call
  RowsAhead& rows_ahead;
  PanelsState& state;
};

// What a tier T that has no tile registers answers: MaxRows rows a group, nothing around a block.
template <class T>
struct WithoutTiles {
  template <class F>
  static constexpr int32_t GroupRows(Precision e, int32_t) {
    return T::MaxRows(e);
  }
  static constexpr int32_t BlockRows(Precision, int64_t) { return kBlockRows; }
  template <class F, Precision E>
  static void Begin(const BlockArgs&) {}
  template <class F, Precision E>
  static void End(const BlockArgs&) {}
  template <class F, Precision E, int P>
  static bool RunPanels(const PanelsArgs&) {
    return false;
  }
  static constexpr int64_t kScratchBytes = 64 << 10;
};

// Asks for the lines of a tile evenly: `lines` of each panel over kSteps steps of a chunk. Into the
// second cache level, see ffn_tile-inl.h.
template <int P, int kSteps>
struct Ahead {
  explicit Ahead(const TileArgs& a) : lines(a.ahead_lines) {
    for (int p = 0; p < P; ++p) at[p] = reinterpret_cast<uintptr_t>(a.ahead[p]);
  }
  inline __attribute__((always_inline)) void Step() {
    for (due += lines; due >= kSteps; due -= kSteps) {
      for (int p = 0; p < P; ++p) {
        __builtin_prefetch(reinterpret_cast<const void*>(at[p]), /*rw=*/0, /*locality=*/1);
        at[p] += 64;
      }
    }
  }
  uintptr_t at[P];
  int64_t lines;
  int64_t due = 0;
};

template <class T, class F, Precision E>
constexpr IntRowLayout LayoutOf(int64_t k) {
  return MakeIntRowLayout(k, T::template kValueBytes<F, E>);
}

template <class T, class F, Precision E>
int64_t RowBytes(int64_t k) {
  return LayoutOf<T, F, E>(k).bytes;
}

template <class T, class F, Precision E>
void Prepare(const float* x, int64_t k, std::byte* out) {
  const IntRowLayout layout = LayoutOf<T, F, E>(k);
  const int64_t groups = NumChunks(k) * kIntChunkGroups;
  // Behind the last group, and the zeros of groups beyond k.
  std::memset(out + layout.scales, 0, static_cast<size_t>(layout.bytes - layout.scales));
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t n = std::clamp<int64_t>(k - group * kIntGroup, 0, kIntGroup);
    if (n == kIntGroup) {
      T::template PrepareGroup<F, E>(x + group * kIntGroup, out, layout, group);
    } else {
      float part[kIntGroup] = {};
      if (n > 0) std::memcpy(part, x + group * kIntGroup, static_cast<size_t>(n) * sizeof(float));
      T::template PrepareGroup<F, E>(part, out, layout, group);
    }
  }
}

// Gate panels at even streams, up panels at odd ones.
template <class T, class F, Precision E>
struct GateUpPart {
  using Args = PackedGateUpArgs;
  static constexpr int32_t kMinPanels = 2;
  static constexpr bool kScatteredRows = true;

  // hidden: [kBlockRows][kChunkInputs] floats
  GateUpPart(const Args& args, float* hidden_chunk)
      : a(args),
        layout(LayoutOf<T, F, E>(args.hidden_size)),
        hidden_layout(LayoutOf<T, F, E>(args.width)),
        panel_bytes(NumChunks(args.hidden_size) * F::kChunkBytes),
        hidden(hidden_chunk) {}
  int64_t K() const { return a.hidden_size; }
  int32_t NumStreams() const { return 2 * (a.end_panel - a.first_panel); }
  const std::byte* Stream(int32_t i) const { return StreamOf(*a.weights, a.first_panel, i); }
  const std::byte* NextStream(int32_t i) const { return StreamOf(*a.next, a.next_panel, i); }
  const std::byte* StreamOf(const PackedExpert& expert, int32_t panel, int32_t i) const {
    return (i % 2 == 0 ? expert.gate_proj : expert.up_proj) + (panel + i / 2) * panel_bytes;
  }
  const std::byte* Row(int32_t i) const { return a.x + a.rows[i] * a.x_stride; }
  RowsAhead NextRows(int64_t steps) const {
    return {a.x, a.next_rows, a.x_stride, a.num_next_rows, layout.bytes, steps};
  }

  void Expect(int32_t, int, int32_t, int32_t) const {}

  // Streams [i, i + num_streams) of rows [first_row, first_row + n) are done.
  void Done(int32_t i, int num_streams, int32_t first_row, int32_t n, const float* acc,
            int64_t acc_panel) {
    for (int p = 0; p < num_streams; p += 2) {
      const int32_t panel = a.first_panel + (i + p) / 2;
      const int64_t column = panel % kGateUpPanels * kPanelOutputs;
      for (int32_t r = 0; r < n; ++r) {
        const float* const gate = acc + p * acc_panel + r * kPanelOutputs;
        const float* const up = gate + acc_panel;
        float* const out = hidden + r * kChunkInputs + column;
        for (int64_t j = 0; j < kPanelOutputs; j += T::V::kLanes) {
          T::V::Store(T::V::Mul(Silu<typename T::V>(T::V::LoadX(gate + j)), T::V::LoadX(up + j)),
                      out + j);
        }
      }
      if (panel % kGateUpPanels != kGateUpPanels - 1 && panel + 1 != a.end_panel) continue;
      const int64_t chunk = panel / kGateUpPanels;
      for (int32_t r = 0; r < n; ++r) {
        float* const values = hidden + r * kChunkInputs;
        std::fill(values + column + kPanelOutputs, values + kChunkInputs, 0.0f);
        std::byte* const row = a.hidden + (first_row + r) * a.hidden_stride;
        for (int64_t g = 0; g < kIntChunkGroups; ++g) {
          T::template PrepareGroup<F, E>(values + g * kIntGroup, row, hidden_layout,
                                         chunk * kIntChunkGroups + g);
        }
      }
    }
  }

  const Args& a;
  const IntRowLayout layout;
  const IntRowLayout hidden_layout;
  const int64_t panel_bytes;
  float* const hidden;
};

template <class T, class F, Precision E>
struct DownPart {
  using Args = PackedDownArgs;
  static constexpr int32_t kMinPanels = 1;
  static constexpr bool kScatteredRows = false;

  DownPart(const Args& args, float*)
      : a(args),
        layout(LayoutOf<T, F, E>(args.width)),
        panel_bytes(NumChunks(args.width) * F::kChunkBytes) {}
  int64_t K() const { return a.width; }
  int32_t NumStreams() const { return a.end_panel - a.first_panel; }
  const std::byte* Stream(int32_t i) const {
    return a.weights->down_proj + (a.first_panel + i) * panel_bytes;
  }
  const std::byte* NextStream(int32_t i) const {
    return a.next->down_proj + (a.next_panel + i) * panel_bytes;
  }
  const std::byte* Row(int32_t i) const { return a.hidden + i * a.hidden_stride; }
  RowsAhead NextRows(int64_t steps) const {
    return {a.next_hidden, nullptr, a.hidden_stride, a.num_next_rows, layout.bytes, steps};
  }
  // Asks for where Done will write: rows are scattered, nothing else foresees them.
  void Expect(int32_t i, int num_streams, int32_t first_row, int32_t n) const {
    const int64_t o = (a.first_panel + i) * kPanelOutputs;
    for (int32_t r = first_row; r < first_row + n; ++r) {
      const auto at = reinterpret_cast<uintptr_t>(a.sum + a.rows[r] * a.sum_stride + o);
      for (int p = 0; p < num_streams; ++p) {
        __builtin_prefetch(
            reinterpret_cast<const void*>(at + static_cast<uintptr_t>(p * kPanelOutputs * 4)), 1);
      }
    }
  }

  void Done(int32_t i, int num_streams, int32_t first_row, int32_t n, const float* acc,
            int64_t acc_panel) {
    for (int p = 0; p < num_streams; ++p) {
      const int64_t o = (a.first_panel + i + p) * kPanelOutputs;
      const int64_t outputs = std::min<int64_t>(kPanelOutputs, a.hidden_size - o);
      for (int32_t r = 0; r < n; ++r) {
        const float weight = a.routing_weights[first_row + r];
        const float* const values = acc + p * acc_panel + r * kPanelOutputs;
        float* const sum = a.sum + a.rows[first_row + r] * a.sum_stride + o;
        if (outputs == kPanelOutputs) {
          // Products in an array of their own: compilers cannot know that sum and values are apart.
          float products[kPanelOutputs];
          for (int64_t j = 0; j < kPanelOutputs; ++j) products[j] = weight * values[j];
          if (a.add) {
            for (int64_t j = 0; j < kPanelOutputs; ++j) sum[j] += products[j];
          } else {
            for (int64_t j = 0; j < kPanelOutputs; ++j) sum[j] = 0.0f + products[j];
          }
        } else {
          for (int64_t j = 0; j < outputs; ++j) {
            sum[j] = (a.add ? sum[j] : 0.0f) + weight * values[j];
          }
        }
      }
    }
  }

  const Args& a;
  const IntRowLayout layout;
  const int64_t panel_bytes;
};

// Cuts the panels into calls of Tile.
template <class T, class F, Precision E, int P>
void RunTile(const PanelsArgs& a) {
  constexpr int64_t kAheadChunks = (kAheadBytes / P + F::kChunkBytes - 1) / F::kChunkBytes;
  const RowGroups& groups = a.block.groups;
  const int64_t chunks = a.block.chunks;
  TileArgs tile = a.tile;
  const auto run = [&](int64_t first, int64_t end, int32_t group, int64_t lines,
                       const std::byte* const* ahead, int64_t ahead_offset) {
    if (first == end) return;
    tile.rows = a.block.rows + groups.First(group);
    tile.num_rows = groups.Size(group);
    tile.acc = a.tile.acc + groups.First(group) * kPanelOutputs;
    tile.first_chunk = first;
    tile.num_chunks = end - first;
    tile.ahead_lines = a.warm || ahead[0] == nullptr ? 0 : lines;
    for (int p = 0; p < P; ++p) {
      tile.weights[p] = a.tile.weights[p] + first * F::kChunkBytes;
      tile.ahead[p] = tile.ahead_lines == 0 ? nullptr : ahead[p] + ahead_offset;
    }
    a.rows_ahead.Step(P * (end - first));
    T::template Tile<F, E, P>(tile);
  };

  if (groups.num_groups == 1) {
    const int64_t head = std::max<int64_t>(0, chunks - kAheadChunks);
    run(0, head, 0, kChunkLines<F>, a.tile.weights, kAheadChunks * F::kChunkBytes);
    run(head, chunks, 0, kChunkLines<F>, a.next, 0);
    return;
  }
  for (int64_t first = 0; first < chunks; first += kRegionChunks) {
    const int64_t end = std::min(first + kRegionChunks, chunks);
    const bool last = end == chunks;
    const std::byte* const* ahead = last ? a.next : a.tile.weights;
    const int64_t offset = last ? 0 : end * F::kChunkBytes;
    const bool own = a.cold && first == 0;
    const int64_t shares = groups.num_groups - (own ? 1 : 0);
    const int64_t lines = (kChunkLines<F> + shares - 1) / shares;
    for (int32_t group = 0; group < groups.num_groups; ++group) {
      if (own && group == 0) {
        run(first, end, group, kChunkLines<F>, a.tile.weights, kAheadChunks * F::kChunkBytes);
      } else {
        const int64_t share = group - (own ? 1 : 0);
        run(first, end, group, lines, ahead, offset + share * (end - first) * lines * 64);
      }
    }
  }
}

template <class T, class F, Precision E, int P, class Part>
void RunStreams(Part& part, const BlockArgs& block, TileArgs tile, int32_t i, int32_t first_row,
                RowsAhead& rows_ahead, PanelsState& state) {
  const std::byte* next[kMaxPanels] = {};
  const int32_t streams = part.NumStreams();
  for (int p = 0; p < P; ++p) {
    tile.weights[p] = part.Stream(i + p);
    if (i + P < streams) {
      next[p] = part.Stream(std::min(i + P + p, streams - 1));
    } else if (part.a.next != nullptr) {
      next[p] = part.NextStream(p);
    }
  }
  const int32_t n = block.groups.num_rows;
  for (int p = 0; p < P; ++p) {
    std::memset(tile.acc + p * tile.acc_panel, 0,
                static_cast<size_t>(n * kPanelOutputs) * sizeof(float));
  }
  part.Expect(i, P, first_row, n);
  const PanelsArgs args = {block,           tile,       next, i == 0, first_row > 0,
                           i + P < streams, rows_ahead, state};
  if (!T::template RunPanels<F, E, P>(args)) RunTile<T, F, E, P>(args);
  part.Done(i, P, first_row, n, tile.acc, tile.acc_panel);
}

template <class T, class F, Precision E, class Part>
void Run(const typename Part::Args& a) {
  std::byte* scratch = a.scratch;
  float* const acc = reinterpret_cast<float*>(scratch);
  scratch += kMaxPanels * kBlockRows * kPanelOutputs * sizeof(float);
  float* const hidden = reinterpret_cast<float*>(scratch);
  scratch += kBlockRows * kChunkInputs * sizeof(float);
  static_assert(kRunBytes <= T::kScratchBytes);
  Part part(a, hidden);
  BlockArgs block;
  block.layout = &part.layout;
  block.chunks = NumChunks(part.K());
  block.scratch = scratch;
  TileArgs tile;
  tile.layout = &part.layout;
  tile.acc = acc;
  tile.acc_panel = kBlockRows * kPanelOutputs;
  const int32_t block_rows = T::BlockRows(E, block.chunks);
  for (int32_t first_row = 0; first_row < a.num_rows; first_row += block_rows) {
    const int32_t n = std::min(block_rows, a.num_rows - first_row);
    const int32_t most = T::template GroupRows<F>(E, n);
    block.groups = {n, (n + most - 1) / most};
    const int32_t group_rows = block.groups.Size(block.groups.num_groups - 1);  // of the largest
    const std::byte* rows[kBlockRows];
    for (int32_t r = 0; r < n; ++r) rows[r] = part.Row(first_row + r);
    block.rows = rows;
    if (!Part::kScatteredRows && n > 1) {
      // Short rows, each too short for the hardware's prefetcher to take notice.
      for (int32_t r = 0; r < n; ++r) {
        for (int64_t at = 0; at < part.layout.bytes; at += 64) __builtin_prefetch(rows[r] + at);
      }
    }
    const int32_t streams = part.NumStreams();
    RowsAhead rows_ahead = part.NextRows(first_row + n < a.num_rows
                                             ? int64_t{1} << 40
                                             : streams * block.groups.num_groups * block.chunks);
    PanelsState state;
    T::template Begin<F, E>(block);
    const int panels = T::Panels(E, group_rows);
    for (int32_t i = 0; i < streams;) {
      if (panels >= 4 && i + 4 <= streams) {
        RunStreams<T, F, E, 4>(part, block, tile, i, first_row, rows_ahead, state);
        i += 4;
      } else if (i + 2 <= streams) {
        RunStreams<T, F, E, 2>(part, block, tile, i, first_row, rows_ahead, state);
        i += 2;
      } else if constexpr (Part::kMinPanels == 1) {
        RunStreams<T, F, E, 1>(part, block, tile, i, first_row, rows_ahead, state);
        i += 1;
      }
    }
    T::template End<F, E>(block);
  }
}

template <class T, class F, Precision E>
void GateUp(const PackedGateUpArgs& args) {
  Run<T, F, E, GateUpPart<T, F, E>>(args);
}

template <class T, class F, Precision E>
void Down(const PackedDownArgs& args) {
  Run<T, F, E, DownPart<T, F, E>>(args);
}

template <class T, class F, Precision E>
constexpr PackedKernels MakeKernels() {
  return {
      .tier = T::kTier,
      .format = F::kFormat,
      .precision = E,
      .scratch_bytes = T::kScratchBytes,
      .row_bytes = RowBytes<T, F, E>,
      .prepare = Prepare<T, F, E>,
      .gate_up = GateUp<T, F, E>,
      .down = Down<T, F, E>,
      .enter_thread = nullptr,
  };
}
