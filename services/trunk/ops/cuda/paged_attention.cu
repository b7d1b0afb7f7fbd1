#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/paged_attention.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kKeyTiles = kPageTokens / 8;             // products of 8 keys
constexpr int kDimTiles = kMaxAttentionHeadDim / 8;    // products of 8 value dimensions
constexpr int kDimBlocks = kMaxAttentionHeadDim / 32;  // of a query or key

// The tile's place in a head's pages, and where its vectors g and g + 8 are. Cell: float, or
// uint16_t for bf16.
template <typename Cell>
struct Place {
  const float* q[2];  // null: no such vector
  int position[2];    // of the vector's row; -1: none
  int last_position;  // of the tile's last row: later tokens of its last page are leftovers
  const int32_t* pages;
  const Cell* keys;  // of this key-value head in page 0
  const Cell* values;
  int64_t page_stride;
};

__device__ __forceinline__ int64_t RowOf(const AttentionLaunch& args, const Segment& segment,
                                         int vector) {
  return segment.first_row + int64_t{vector / args.group};
}

// Vector `at` of a tile.
__device__ __forceinline__ const float* QueryOf(const AttentionLaunch& args, const Segment& segment,
                                                const AttentionTile& tile, int kv_head, int at) {
  const int vector = tile.first_vector + at;
  const int head = kv_head * args.group + vector % args.group;
  return args.q_gate + (RowOf(args, segment, vector) * args.num_heads + head) * 2 * args.head_dim;
}

template <typename Cell>
__device__ __forceinline__ Place<Cell> FindPlace(const StepTables& step,
                                                 const AttentionLaunch& args,
                                                 const AttentionTile& tile, int kv_head, int g) {
  const Segment segment = step.segments[tile.segment];
  Place<Cell> place;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    place.q[i] = nullptr;
    place.position[i] = -1;
    const int at = g + 8 * i;
    if (at >= tile.num_vectors) continue;
    place.q[i] = QueryOf(args, segment, tile, kv_head, at);
    place.position[i] = segment.first_position + (tile.first_vector + at) / args.group;
  }
  place.last_position =
      segment.first_position + (tile.first_vector + tile.num_vectors - 1) / args.group;
  place.pages = step.page_ids + segment.first_page;
  const int64_t head_floats = int64_t{args.head_dim} * kPageTokens;
  place.keys = static_cast<const Cell*>(args.key_pages) + kv_head * head_floats;
  place.values = static_cast<const Cell*>(args.value_pages) + kv_head * head_floats;
  place.page_stride = args.num_kv_heads * head_floats;
  return place;
}

// Eight floats from `at` of an array of `size`, split; kExact: all are there and aligned.
template <bool kExact>
__device__ __forceinline__ void LoadSplit8(const float* p, int at, int size, Split2 (&out)[4]) {
  float v[8];
  if (kExact) {
    const float4 a = *reinterpret_cast<const float4*>(p + at);
    const float4 b = *reinterpret_cast<const float4*>(p + at + 4);
    v[0] = a.x;
    v[1] = a.y;
    v[2] = a.z;
    v[3] = a.w;
    v[4] = b.x;
    v[5] = b.y;
    v[6] = b.z;
    v[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = p != nullptr && at + i < size ? p[at + i] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = Split(v[2 * i], v[2 * i + 1]);
}

// The same of bf16: nothing is left for the low half.
template <bool kExact>
__device__ __forceinline__ void LoadSplit8(const uint16_t* p, int at, int size, Split2 (&out)[4]) {
  if (kExact) {
    const uint4 v = *reinterpret_cast<const uint4*>(p + at);
    out[0] = {v.x, 0};
    out[1] = {v.y, 0};
    out[2] = {v.z, 0};
    out[3] = {v.w, 0};
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t first = at + 2 * i < size ? p[at + 2 * i] : 0u;
      const uint32_t second = at + 2 * i + 1 < size ? p[at + 2 * i + 1] : 0u;
      out[i] = {first | second << 16, 0};
    }
  }
}

// The low halves of numbers that are bf16 need no product.
template <typename Cell>
constexpr bool kHasLow = sizeof(Cell) == sizeof(float);

template <bool kExact, typename Cell>
__device__ __forceinline__ void LoadQuery(const Place<Cell>& place, int block, int t, int dim,
                                          Split2 (&low)[4], Split2 (&high)[4]) {
  const int at = block * 32 + t * 8;
  if (kExact) {
#pragma unroll
    for (int i = 0; i < 4; ++i) low[i] = high[i] = {0, 0};
    if (place.q[0] != nullptr) LoadSplit8<true>(place.q[0], at, dim, low);
    if (place.q[1] != nullptr) LoadSplit8<true>(place.q[1], at, dim, high);
  } else {
    LoadSplit8<false>(place.q[0], at, dim, low);
    LoadSplit8<false>(place.q[1], at, dim, high);
  }
}

// scores += q k^T over 32 dimensions: products of 8 keys.
template <bool kKeyHasLow>
__device__ __forceinline__ void ScoreBlock(float (&scores)[4], const Split2 (&low)[4],
                                           const Split2 (&high)[4], const Split2 (&key)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = 2 * half;
    const uint32_t hi[4] = {low[i].hi, high[i].hi, low[i + 1].hi, high[i + 1].hi};
    const uint32_t lo[4] = {low[i].lo, high[i].lo, low[i + 1].lo, high[i + 1].lo};
    Mma(scores, hi, key[i].hi, key[i + 1].hi);
    if (kKeyHasLow) Mma(scores, hi, key[i].lo, key[i + 1].lo);
    Mma(scores, lo, key[i].hi, key[i + 1].hi);
  }
}

// Column c of key tile j is token 16 (c / 2) + 2 j + c % 2 of the page: so a lane's columns 2 t and
// 2 t + 1 of all tiles are the tokens 16 t to 16 t + 15, which lie together in a row of values.
__device__ __forceinline__ int TokenOf(int tile, int column) {
  return column / 2 * 16 + 2 * tile + column % 2;
}

// Of one page, for a lane's vectors g and g + 8: scaled and masked scores become probabilities that
// are not yet divided by their sum.
struct PageSums {
  float max[2];
  float sum[2];
};

template <typename Cell>
__device__ __forceinline__ PageSums PageSoftmax(float (&scores)[kKeyTiles][4],
                                                const Place<Cell>& place, int first_position, int t,
                                                float scale) {
  PageSums sums;
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    float max = -INFINITY;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = scores[j][2 * v + c];
        const int position = first_position + TokenOf(j, 2 * t + c);
        score = position <= place.position[v] ? score * scale : -INFINITY;
        max = fmaxf(max, score);
      }
    }
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = scores[j][2 * v + c];
        score = score == -INFINITY ? 0.0f : expf(score - max);
        sum += score;
      }
    }
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    sums.max[v] = max;
    sums.sum[v] = sum;
  }
  return sums;
}

// Probabilities of 16 tokens as the first factor of a product.
struct Probabilities {
  uint32_t hi[kKeyTiles / 2][4];
  uint32_t lo[kKeyTiles / 2][4];
};

__device__ __forceinline__ Probabilities SplitProbabilities(const float (&p)[kKeyTiles][4]) {
  Probabilities out;
#pragma unroll
  for (int i = 0; i < kKeyTiles / 2; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      // e: vector g or g + 8 of tile 2 i, then of tile 2 i + 1.
      const float* from = &p[2 * i + e / 2][e % 2 * 2];
      const Split2 split = Split(from[0], from[1]);
      out.hi[i][e] = split.hi;
      out.lo[i][e] = split.lo;
    }
  }
  return out;
}

// Four values as they lie in a row.
template <typename Cell>
struct FourValues;
template <>
struct FourValues<float> {
  using Type = float4;
};
template <>
struct FourValues<uint16_t> {
  using Type = uint2;
};

template <typename Cell>
__device__ __forceinline__ typename FourValues<Cell>::Type LoadValues(const Cell* row, int at) {
  return *reinterpret_cast<const typename FourValues<Cell>::Type*>(row + at);
}

// They as two pairs; the first `valid` are data.
struct ValuePairs {
  Split2 a;
  Split2 b;
};
__device__ __forceinline__ ValuePairs PairsOf(float4 v, int valid) {
  if (valid < 4) {
    if (valid < 1) v.x = 0;
    if (valid < 2) v.y = 0;
    if (valid < 3) v.z = 0;
    v.w = 0;
  }
  return {Split(v.x, v.y), Split(v.z, v.w)};
}
__device__ __forceinline__ ValuePairs PairsOf(uint2 v, int valid) {
  if (valid < 4) {
    v.x &= valid < 1 ? 0u : (valid < 2 ? 0xffffu : 0xffffffffu);
    v.y &= valid < 3 ? 0u : 0xffffu;
  }
  return {{v.x, 0}, {v.y, 0}};
}

// A lane's values of a page for 8 dimensions, of which it has one: `row` is that dimension's.
template <typename Cell>
struct ValueRow {
  typename FourValues<Cell>::Type four[kKeyTiles / 2];

  __device__ __forceinline__ void Load(const Cell* row, int t) {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) four[i] = LoadValues(row, t * 16 + 4 * i);
  }
};

// sum = P V for 8 dimensions; `valid` tokens of the page are data.
template <typename Cell>
__device__ __forceinline__ void ValueTile(float (&sum)[4], const Probabilities& p,
                                          const ValueRow<Cell>& row, int t, int valid) {
#pragma unroll
  for (int i = 0; i < kKeyTiles / 2; ++i) {
    const ValuePairs v = PairsOf(row.four[i], valid - (t * 16 + 4 * i));
    Mma(sum, p.hi[i], v.a.hi, v.b.hi);
    if (kHasLow<Cell>) Mma(sum, p.hi[i], v.a.lo, v.b.lo);
    Mma(sum, p.lo[i], v.a.hi, v.b.hi);
  }
}

// total = total joined with a page: the same three steps wherever pages are joined.
struct Join {
  float max;
  float of_total;
  float of_page;
};
__device__ __forceinline__ Join JoinMax(float max, float page_max) {
  const float both = fmaxf(max, page_max);
  return {both, expf(max - both), expf(page_max - both)};
}
__device__ __forceinline__ float JoinSum(float total, float page, const Join& join) {
  return fmaf(page, join.of_page, total * join.of_total);
}

__device__ __forceinline__ float Gated(float acc, float sum, float gate) {
  return acc / sum * Sigmoid(gate);
}

constexpr int kWarpsPerCta = 4;

// A warp per tile and key-value head. Tiles of a CTA are neighbours, so that the pages that one
// warp fetches are in the first-level cache for the others.
template <bool kExact, typename Cell>
__global__ void __launch_bounds__(kWarpsPerCta* kWarp)
    WholeKernel(const StepTables step, const AttentionLaunch args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  // The longest tiles of a prompt come last: start with them.
  const int index =
      static_cast<int>((gridDim.x - 1 - blockIdx.x) * kWarpsPerCta + threadIdx.x / kWarp);
  if (index >= step.num_tiles) return;
  const AttentionTile tile = step.tiles[index];
  const Place<Cell> place = FindPlace<Cell>(step, args, tile, static_cast<int>(blockIdx.y), g);
  const int dim = kExact ? kMaxAttentionHeadDim : args.head_dim;
  const float scale = 1.0f / sqrtf(static_cast<float>(dim));

  float total[kDimTiles][4] = {};
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
  for (int page = 0; page < tile.num_pages; ++page) {
    const int64_t base = place.pages[page] * place.page_stride;
    const int first_position = page * kPageTokens;
    float scores[kKeyTiles][4] = {};
#pragma unroll 1
    for (int block = 0; block < (dim + 31) / 32; ++block) {
      Split2 low[4];
      Split2 high[4];
      LoadQuery<kExact>(place, block, t, dim, low, high);
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j) {
        Split2 key[4];
        LoadSplit8<kExact>(place.keys + base + TokenOf(j, g) * dim, block * 32 + t * 8, dim, key);
        ScoreBlock<kHasLow<Cell>>(scores[j], low, high, key);
      }
    }
    const PageSums sums = PageSoftmax(scores, place, first_position, t, scale);
    const Probabilities p = SplitProbabilities(scores);
    Join join[2];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      join[v] = place.position[v] < 0 ? Join{0, 0, 0} : JoinMax(max[v], sums.max[v]);
      max[v] = join[v].max;
      sum[v] = JoinSum(sum[v], sums.sum[v], join[v]);
    }
    const int valid = place.last_position + 1 - first_position;
#pragma unroll
    for (int n = 0; n < kDimTiles; ++n) {
      if (n * 8 >= dim) break;
      const int d = min(n * 8 + g, dim - 1);
      float part[4] = {};
      ValueRow<Cell> row;
      row.Load(place.values + base + d * kPageTokens, t);
      ValueTile(part, p, row, t, valid);
#pragma unroll
      for (int i = 0; i < 4; ++i) total[n][i] = JoinSum(total[n][i], part[i], join[i / 2]);
    }
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    if (place.q[v] == nullptr) continue;
    const float* gate = place.q[v] + dim;
    // q_gate is [rows, heads, 2, dim], out [rows, heads, dim].
    float* out = args.out + (place.q[v] - args.q_gate) / 2;
#pragma unroll
    for (int n = 0; n < kDimTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int d = n * 8 + 2 * t + c;
        if (d < dim) out[d] = Gated(total[n][2 * v + c], sum[v], gate[d]);
      }
    }
  }
}

// Layout of a partial: max [16], sum [16], values [16, dim].
__device__ __forceinline__ float* PartialAt(float* partials, const AttentionLaunch& args,
                                            int64_t page, int kv_head) {
  return partials + (page * args.num_kv_heads + kv_head) * PartialFloats(args.head_dim);
}

__device__ __forceinline__ int FindTile(const StepTables& step, const TileRange& range, int page) {
  int low = range.first_tile;
  int high = range.first_tile + range.num_tiles - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (step.tiles[middle].first_partial <= page) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

constexpr int kSplitThreads = kKeyTiles * kWarp;
// Floats of a query in shared memory: eight lanes read sixteen bytes each of two queries, all banks
// once.
constexpr int kQueryStride = kMaxAttentionHeadDim + 4;

// The tile's queries to shared memory, zeros where there are none. All threads.
template <bool kExact>
__device__ __forceinline__ void StageQueries(const AttentionLaunch& args, const Segment& segment,
                                             const AttentionTile& tile, int kv_head,
                                             float* queries) {
  constexpr int kPieces = kMaxAttentionHeadDim / 4;
#pragma unroll
  for (int i = 0; i < kVectorsPerTile * kPieces / kSplitThreads; ++i) {
    const int piece_at = i * kSplitThreads + static_cast<int>(threadIdx.x);
    const int vector = piece_at / kPieces;
    const int column = piece_at % kPieces * 4;
    const float* const query = QueryOf(args, segment, tile, kv_head, vector);
    float4 piece = {0, 0, 0, 0};
    if (vector < tile.num_vectors) {
      if (kExact) {
        piece = *reinterpret_cast<const float4*>(query + column);
      } else {
        if (column < args.head_dim) piece.x = query[column];
        if (column + 1 < args.head_dim) piece.y = query[column + 1];
        if (column + 2 < args.head_dim) piece.z = query[column + 2];
        if (column + 3 < args.head_dim) piece.w = query[column + 3];
      }
    }
    *reinterpret_cast<float4*>(queries + vector * kQueryStride + column) = piece;
  }
}

// A CTA per page of a tile: a warp scores 8 keys, all compute the softmax, a warp sums the values
// of a quarter of the dimensions.
template <bool kExact, typename Cell>
__global__ void __launch_bounds__(kSplitThreads)
    PageKernel(const StepTables step, const AttentionLaunch args, const TileRange range,
               float* partials) {
  LetNextStart();
  __shared__ float4 exchange[kKeyTiles][kWarp];
  __shared__ __align__(16) float queries[kVectorsPerTile * kQueryStride];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int partial = range.first_partial + static_cast<int>(blockIdx.x);
  const AttentionTile tile = step.tiles[FindTile(step, range, partial)];
  const int page = partial - tile.first_partial;
  if (page >= tile.num_pages) return;  // beyond the last tile
  const Place<Cell> place = FindPlace<Cell>(step, args, tile, kv_head, g);
  const int dim = kExact ? kMaxAttentionHeadDim : args.head_dim;
  const float scale = 1.0f / sqrtf(static_cast<float>(dim));
  const int64_t base = place.pages[page] * place.page_stride;
  const int first_position = page * kPageTokens;
  // The plan lies there since before the step's first kernel, and most of the page does: on its way
  // to the second-level cache, whoever still writes the rest.
  for (int line = static_cast<int>(threadIdx.x); line * 128 < dim * kPageTokens * int{sizeof(Cell)};
       line += kSplitThreads) {
    constexpr int kLineCells = 128 / static_cast<int>(sizeof(Cell));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(place.keys + base + line * kLineCells));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(place.values + base + line * kLineCells));
  }
  constexpr int kRows = kDimTiles / kKeyTiles;
  ValueRow<Cell> rows[kRows];
  AwaitOthers();
  // All that comes from memory at once, one wait for all of it.
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int d = min((i * kKeyTiles + warp) * 8 + g, dim - 1);
    rows[i].Load(place.values + base + d * kPageTokens, t);
  }
  const Cell* const keys = place.keys + base + TokenOf(warp, g) * dim;
  constexpr bool kKeysAhead = kExact && !kHasLow<Cell>;  // of others there are too many
  Split2 key[kKeysAhead ? kDimBlocks : 1][4];
  if constexpr (kKeysAhead) {
#pragma unroll
    for (int block = 0; block < kDimBlocks; ++block) {
      LoadSplit8<kExact>(keys, block * 32 + t * 8, dim, key[block]);
    }
  }
  StageQueries<kExact>(args, step.segments[tile.segment], tile, kv_head, queries);
  __syncthreads();

  float mine[4] = {};
#pragma unroll
  for (int block = 0; block < kDimBlocks; ++block) {
    if (block * 32 >= dim) break;
    const int at = block * 32 + t * 8;
    Split2 low[4];
    Split2 high[4];
    LoadSplit8<true>(queries + g * kQueryStride, at, dim, low);
    LoadSplit8<true>(queries + (g + 8) * kQueryStride, at, dim, high);
    if constexpr (!kKeysAhead) LoadSplit8<kExact>(keys, at, dim, key[0]);
    ScoreBlock<kHasLow<Cell>>(mine, low, high, key[kKeysAhead ? block : 0]);
  }
  exchange[warp][lane] = {mine[0], mine[1], mine[2], mine[3]};
  __syncthreads();
  float scores[kKeyTiles][4];
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
    const float4 from = exchange[j][lane];
    scores[j][0] = from.x;
    scores[j][1] = from.y;
    scores[j][2] = from.z;
    scores[j][3] = from.w;
  }
  const PageSums sums = PageSoftmax(scores, place, first_position, t, scale);
  const Probabilities p = SplitProbabilities(scores);
  float* out = PartialAt(partials, args, blockIdx.x, kv_head);
  if (warp == 0 && t == 0) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      out[g + 8 * v] = sums.max[v];
      out[kVectorsPerTile + g + 8 * v] = sums.sum[v];
    }
  }
  const int valid = place.last_position + 1 - first_position;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int n = i * kKeyTiles + warp;
    if (n * 8 >= dim) break;
    float part[4] = {};
    ValueTile(part, p, rows[i], t, valid);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int vector = g + e / 2 * 8;
      const int column = n * 8 + 2 * t + e % 2;
      if (vector < tile.num_vectors && column < dim) {
        out[2 * kVectorsPerTile + vector * dim + column] = part[e];
      }
    }
  }
}

constexpr int kJoinThreads = kMaxAttentionHeadDim;

// A CTA per vector of a tile: joins its pages in order, a thread per dimension. The running maxima
// of 256 pages are found together; a maximum is the same in whatever order it is taken.
__global__ void __launch_bounds__(kJoinThreads)
    JoinKernel(const StepTables step, const AttentionLaunch args, const TileRange range,
               float* partials) {
  LetNextStart();
  __shared__ float running[kJoinThreads];
  __shared__ float warp_max[kJoinThreads / kWarp];
  __shared__ float2 factors[kJoinThreads];
  const int vector = static_cast<int>(blockIdx.z);
  const int kv_head = static_cast<int>(blockIdx.y);
  const AttentionTile tile = step.tiles[range.first_tile + blockIdx.x];
  if (vector >= tile.num_vectors) return;
  const int dim = args.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int64_t stride = args.num_kv_heads * PartialFloats(dim);
  const float* first = PartialAt(partials, args, tile.first_partial - range.first_partial, kv_head);
  AwaitOthers();

  float max = -INFINITY;
  float sum = 0;
  float acc = 0;
  for (int page0 = 0; page0 < tile.num_pages; page0 += kJoinThreads) {
    const int pages = min(kJoinThreads, tile.num_pages - page0);
    const float mine = thread < pages ? first[(page0 + thread) * stride + vector] : -INFINITY;
    float scan = mine;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const float before = __shfl_up_sync(kAllLanes, scan, offset);
      if (lane >= offset) scan = fmaxf(scan, before);
    }
    if (lane == kWarp - 1) warp_max[thread / kWarp] = scan;
    __syncthreads();
    scan = fmaxf(scan, max);
    for (int w = 0; w < thread / kWarp; ++w) scan = fmaxf(scan, warp_max[w]);
    running[thread] = scan;
    __syncthreads();
    const Join join = JoinMax(thread == 0 ? max : running[thread - 1], mine);
    factors[thread] = {join.of_total, join.of_page};
    max = running[kJoinThreads - 1];
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < pages; ++i) {
      const float* page = first + (page0 + i) * stride;
      const Join factor = {0, factors[i].x, factors[i].y};
      sum = JoinSum(sum, page[kVectorsPerTile + vector], factor);
      if (thread < dim)
        acc = JoinSum(acc, page[2 * kVectorsPerTile + vector * dim + thread], factor);
    }
    __syncthreads();
  }
  if (thread >= dim) return;
  const Segment segment = step.segments[tile.segment];
  const int at = tile.first_vector + vector;
  const int64_t head =
      RowOf(args, segment, at) * args.num_heads + kv_head * args.group + at % args.group;
  args.out[head * dim + thread] = Gated(acc, sum, args.q_gate[(head * 2 + 1) * dim + thread]);
}

}  // namespace

cudaError_t PagedAttention(const StepTables& step, const AttentionLaunch& args,
                           cudaStream_t stream) {
  if (step.num_tiles == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((step.num_tiles + kWarpsPerCta - 1) / kWarpsPerCta),
                  static_cast<unsigned>(args.num_kv_heads));
  const bool exact = args.head_dim == kMaxAttentionHeadDim;
  const auto kernel = args.bf16_pages
                          ? (exact ? WholeKernel<true, uint16_t> : WholeKernel<false, uint16_t>)
                          : (exact ? WholeKernel<true, float> : WholeKernel<false, float>);
  LaunchAlone(kernel, grid, kWarpsPerCta * kWarp, 0, stream, step, args);
  return cudaPeekAtLastError();
}

cudaError_t PagedAttentionSplit(const StepTables& step, const AttentionLaunch& args,
                                const TileRange& range, float* partials, cudaStream_t stream) {
  if (range.num_tiles == 0) return cudaSuccess;
  const auto kv_heads = static_cast<unsigned>(args.num_kv_heads);
  const dim3 pages(static_cast<unsigned>(range.num_partials), kv_heads);
  const bool exact = args.head_dim == kMaxAttentionHeadDim;
  const auto kernel = args.bf16_pages
                          ? (exact ? PageKernel<true, uint16_t> : PageKernel<false, uint16_t>)
                          : (exact ? PageKernel<true, float> : PageKernel<false, float>);
  Launch(kernel, pages, kSplitThreads, 0, stream, step, args, range, partials);
  const dim3 vectors(static_cast<unsigned>(range.num_tiles), kv_heads, kVectorsPerTile);
  Launch(JoinKernel, vectors, kJoinThreads, 0, stream, step, args, range, partials);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
