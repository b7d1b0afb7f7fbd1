#include "common/plan/op_scratch.h"

#include <algorithm>

#include "common/quant/packed_expert.h"

namespace banyan {
namespace {

// CPU. Query vectors of one tile: enough to make use of each key loaded, few enough to fit beside
// them.
constexpr int32_t kCpuVectorsPerTile = 64;
// Partial sums kept when partitions run in parallel: 16 MiB at the most.
constexpr int64_t kCpuPartialFloats = 4 * 1024 * 1024;
constexpr size_t kCpuTileBytes = 16 + 8;  // a tile and where its sums begin

// Of DeltaNet: as many as a page has.
constexpr int32_t kChunkTokens = 64;

// GPU: entries of the step's tables (step_upload.cc holds them to these).
constexpr size_t kCudaTableAlignment = 16;
constexpr size_t kCudaSegmentBytes = 20;
constexpr size_t kCudaTileBytes = 20;
constexpr int64_t kCudaMostPartialBytes = int64_t{64} << 20;
constexpr int64_t kCudaTopTile = 4096;
constexpr int64_t kCudaMostTopLists = 64;
constexpr int64_t kCudaTopListBytes = kMaxTopLogits * 8 + 4;
// Prompts of 2,048 tokens in one go.
constexpr int32_t kCudaMostDeltaChunks = 32;

int64_t SumsFloats(int64_t vectors, int64_t head_dim) { return vectors * (head_dim + 2); }
int64_t ScoresFloats(int64_t vectors, int64_t head_dim) {
  return vectors * (head_dim + kKvPageTokens);
}

size_t Aligned(size_t bytes) {
  return (bytes + kCudaTableAlignment - 1) / kCudaTableAlignment * kCudaTableAlignment;
}

}  // namespace

CpuAttentionScratch CpuAttentionScratchOf(const OpLimits& limits) {
  const AttentionShape& shape = limits.attention;
  CpuAttentionScratch out;
  if (shape.num_heads == 0) return out;
  // A power of two that divides a page, so that aligned tiles never cross one.
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  int32_t rows = 1;
  while (2 * rows * group <= kCpuVectorsPerTile && 2 * rows <= kKvPageTokens) rows *= 2;
  const int64_t vectors = int64_t{rows} * group;
  out.rows_per_tile = rows;
  out.sums_floats = SumsFloats(vectors, shape.head_dim);
  out.thread_floats = ScoresFloats(vectors, shape.head_dim) + 2 * out.sums_floats;
  // Beyond one partition for every row there is nothing to split.
  const int64_t all = (int64_t{limits.max_position} / (kCpuPartitionPages * kKvPageTokens) + 1) *
                      limits.max_rows * shape.num_kv_heads;
  out.max_partials = std::max<int64_t>(std::min(all, kCpuPartialFloats / out.sums_floats), 1);
  return out;
}

size_t CpuAttentionBytes(const OpLimits& limits, int num_threads) {
  const CpuAttentionScratch scratch = CpuAttentionScratchOf(limits);
  if (scratch.rows_per_tile == 0) return 0;
  const int64_t floats =
      scratch.thread_floats * num_threads + scratch.max_partials * scratch.sums_floats;
  return static_cast<size_t>(floats) * sizeof(float) +
         static_cast<size_t>(limits.max_rows) * kCpuTileBytes;
}

CpuHostExpertScratch CpuHostExpertScratchOf(const OpLimits& limits) {
  const HostExpertShape& shape = limits.host_experts;
  if (shape.width == 0) return {};
  const int32_t pairs = std::min(limits.max_rows, kCpuHostExpertPairs);
  return {.pairs = pairs,
          .pair_floats = shape.hidden_size + 2 * int64_t{shape.width},
          .thread_floats = kPanelOutputs * (std::max(shape.hidden_size, shape.width) + pairs)};
}

size_t CpuHostExpertBytes(const OpLimits& limits, int num_threads) {
  const CpuHostExpertScratch scratch = CpuHostExpertScratchOf(limits);
  return static_cast<size_t>(scratch.pairs * scratch.pair_floats +
                             scratch.thread_floats * num_threads) *
         sizeof(float);
}

int64_t CpuThreadFloats(const OpLimits& limits) {
  const DeltaNetShape& shape = limits.delta_net;
  int64_t floats = limits.num_experts;
  if (shape.num_value_heads > 0) {
    floats = std::max(
        floats, int64_t{kChunkTokens} * (3 * int64_t{shape.key_head_dim} +
                                         3 * int64_t{shape.value_head_dim} + 2 * kChunkTokens + 2));
  }
  return (floats + 15) / 16 * 16;
}

size_t CpuScratchBytes(const OpLimits& limits, int num_threads) {
  return static_cast<size_t>(CpuThreadFloats(limits)) * sizeof(float) *
             static_cast<size_t>(num_threads) +
         CpuAttentionBytes(limits, num_threads) + CpuHostExpertBytes(limits, num_threads) +
         static_cast<size_t>(num_threads) * (kCpuTopLogits * kCpuTopLogitBytes + kCpuLinearBytes);
}

size_t CudaMaxAttentionTiles(const OpLimits& limits) {
  if (limits.attention.num_heads == 0) return 0;
  const int64_t group = limits.attention.num_heads / limits.attention.num_kv_heads;
  // Whole tiles, and one that is not full for every segment.
  return static_cast<size_t>(limits.max_rows * group / kCudaVectorsPerTile + limits.max_segments +
                             1);
}

size_t CudaStepTableBytes(const OpLimits& limits) {
  const auto rows = static_cast<size_t>(limits.max_rows);
  const auto segments = static_cast<size_t>(limits.max_segments);
  const auto pages =
      static_cast<size_t>((int64_t{limits.max_position} + kKvPageTokens - 1) / kKvPageTokens);
  return Aligned(kCudaHandoverCountBytes) + Aligned(segments * kCudaSegmentBytes) +
         3 * Aligned(segments * sizeof(int32_t)) +
         Aligned(static_cast<size_t>(CudaMaxChunks(limits)) * sizeof(int32_t)) +
         3 * Aligned(rows * sizeof(int32_t)) + Aligned(segments * pages * sizeof(int32_t)) +
         2 * Aligned(rows * static_cast<size_t>(limits.attention.rotary_dim / 2) * sizeof(float)) +
         Aligned(CudaMaxAttentionTiles(limits) * kCudaTileBytes);
}

int64_t CudaPartialPageBytes(const AttentionShape& shape) {
  return CudaPartialFloats(shape.head_dim) * shape.num_kv_heads *
         static_cast<int64_t>(sizeof(float));
}

int64_t CudaPartialBytes(const OpLimits& limits) {
  const AttentionShape& shape = limits.attention;
  if (shape.num_heads == 0) return 0;
  const int64_t one =
      (int64_t{limits.max_position} / kKvPageTokens + 1) * CudaPartialPageBytes(shape);
  return std::max(one, std::min(kCudaMostPartialBytes, one * limits.max_segments));
}

int64_t CudaTopLogitsBytes(const OpLimits& limits) {
  const int64_t tiles = (limits.vocab_size + kCudaTopTile - 1) / kCudaTopTile;
  return limits.max_logits_rows * std::min(tiles, kCudaMostTopLists) * kCudaTopListBytes;
}

int32_t CudaMaxChunks(const OpLimits& limits) {
  // Whole ones, and one that is not full for every segment.
  return std::min(limits.max_rows, limits.max_rows / kChunkTokens + limits.max_segments);
}

int32_t CudaDeltaChunks(const OpLimits& limits) {
  if (limits.delta_net.num_value_heads == 0) return 0;
  return std::min(CudaMaxChunks(limits), kCudaMostDeltaChunks);
}

size_t CudaDeltaBytes(const OpLimits& limits) {
  const DeltaNetShape& shape = limits.delta_net;
  return static_cast<size_t>(CudaDeltaChunks(limits)) *
         (static_cast<size_t>(shape.num_key_heads) * kCudaChunkKeyBytes +
          static_cast<size_t>(shape.num_value_heads) * kCudaChunkGateBytes);
}

int64_t CudaDecodedExpertElements(const HostExpertShape& shape) {
  return 2 * PaddedElements(shape.width, shape.hidden_size) +
         PaddedElements(shape.hidden_size, shape.width);
}

size_t CudaHostExpertBytes(const OpLimits& limits) {
  const HostExpertShape& shape = limits.host_experts;
  if (shape.width == 0) return 0;
  const int64_t elements = kCudaHostExperts * CudaDecodedExpertElements(shape) +
                           limits.max_rows * PaddedInputs(shape.width);
  return static_cast<size_t>(elements) * sizeof(uint16_t);
}

size_t CudaHostRingBytes(const HostExpertShape& shape) {
  const auto bytes = [&shape](PoolFormat format) {
    return PackedExpertLayoutOf(format, shape.hidden_size, shape.width).bytes;
  };
  return static_cast<size_t>(std::max(kCudaHostPlaces * kCudaHostExperts * bytes(PoolFormat::kInt8),
                                      kCudaLeastHostPlaces * bytes(PoolFormat::kBF16)));
}

size_t CudaHostExpertListBytes(const HostExpertShape& shape, int64_t max_rows) {
  return static_cast<size_t>(max_rows) * static_cast<size_t>(shape.top_k) *
         (sizeof(int32_t) + sizeof(float));
}

size_t CudaOperationBytes(const OpLimits& limits) {
  return std::max({static_cast<size_t>(CudaPartialBytes(limits)),
                   static_cast<size_t>(CudaTopLogitsBytes(limits)), CudaDeltaBytes(limits),
                   CudaReduceBytes(limits), CudaSplitBytes(limits), CudaHostExpertBytes(limits)});
}

size_t CudaScratchBytes(const OpLimits& limits) {
  size_t bytes = 0;
  ForEachCudaScratch(limits, [&bytes](size_t piece) { bytes += piece; });
  return bytes;
}

}  // namespace banyan
