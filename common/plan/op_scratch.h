// Scratch of the trunk's operations on each kind of device, from the limits alone: the backends
// allocate by these functions, and a plan needs no device to ask them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/plan/op_limits.h"

namespace banyan {

// Attention on the CPU (ops/cpu/paged_attention.h): query vectors come in tiles, each of one
// thread, and tiles that look far back keep sums of partitions until they are joined.
struct CpuAttentionScratch {
  int32_t rows_per_tile = 0;  // 0: no attention
  int64_t sums_floats = 0;    // running softmax of a tile
  int64_t thread_floats = 0;  // scores and two sums of a tile
  int64_t max_partials = 0;   // tiles' sums kept at once
};
inline constexpr int64_t kCpuPartitionPages = 16;  // KV pages of a partition
CpuAttentionScratch CpuAttentionScratchOf(const OpLimits& limits);
size_t CpuAttentionBytes(const OpLimits& limits, int num_threads);

// Routed experts on the CPU (ops/cpu/host_experts.h): pairs of an expert and a row go through in
// groups, and a thread decodes a panel of outputs at a time. Larger groups would save little: of so
// many pairs, decoding is a sixth of the work.
inline constexpr int32_t kCpuHostExpertPairs = 512;
struct CpuHostExpertScratch {
  int32_t pairs = 0;          // of a group; 0: no such experts
  int64_t pair_floats = 0;    // the row, and what gate_proj and up_proj make of it
  int64_t thread_floats = 0;  // a decoded panel and what it makes of a group's pairs
};
CpuHostExpertScratch CpuHostExpertScratchOf(const OpLimits& limits);
size_t CpuHostExpertBytes(const OpLimits& limits, int num_threads);

// Of one thread: DeltaNet in chunks, or the router's probabilities. Whole cache lines.
int64_t CpuThreadFloats(const OpLimits& limits);

// Of one thread, for products that arrange rows and weights first (ops/cpu/kernel_table.h).
inline constexpr size_t kCpuLinearBytes = size_t{1024 + 64} << 10;

// Of one thread, to find the highest logits of a row in (services/trunk/sampling/row_math.h).
inline constexpr size_t kCpuTopLogits = 2 * kMaxTopLogits + 128;
inline constexpr size_t kCpuTopLogitBytes = 8;

size_t CpuScratchBytes(const OpLimits& limits, int num_threads);

// The tables of a step, or of a part of it, on the GPU (ops/cuda/step_tables.h), and how many
// attention tiles they hold.
size_t CudaStepTableBytes(const OpLimits& limits);
size_t CudaMaxAttentionTiles(const OpLimits& limits);

// Pages attended to in parallel leave max, sum and weighted values for each query vector of a tile.
inline constexpr int32_t kCudaVectorsPerTile = 16;
constexpr int64_t CudaPartialFloats(int32_t head_dim) {
  return int64_t{kCudaVectorsPerTile} * (head_dim + 2);
}
// Of one page, all KV heads; and of what a step keeps: one tile of the longest context at least.
int64_t CudaPartialPageBytes(const AttentionShape& shape);
int64_t CudaPartialBytes(const OpLimits& limits);

// Lists of the highest logits of pieces of a row, before they are one (ops/cuda/top_logits.h).
int64_t CudaTopLogitsBytes(const OpLimits& limits);

// DeltaNet in chunks of 64 tokens: chunks that a step may have, how many of them are taken at once,
// and what is prepared of these for the recurrence (ops/cuda/delta_chunks.h).
inline constexpr size_t kCudaChunkKeyBytes = size_t{2} * 64 * 128 * 4;            // of a key head
inline constexpr size_t kCudaChunkGateBytes = size_t{20 * 16 * 16 + 3 * 64} * 4;  // of a value head
int32_t CudaMaxChunks(const OpLimits& limits);
int32_t CudaDeltaChunks(const OpLimits& limits);
size_t CudaDeltaBytes(const OpLimits& limits);

// What other devices leave of a sum that all of them get. Two devices need nothing: a + b is b + a,
// whoever adds.
constexpr size_t CudaReduceBytes(const OpLimits& limits) {
  return limits.tensor_parallel <= 2 ? 0
                                     : static_cast<size_t>(limits.tensor_parallel) *
                                           static_cast<size_t>(limits.max_reduced) * sizeof(float);
}

// x of the widest product, rows in whole groups, split in so many bf16 (ops/cuda/linear.h).
inline constexpr int kCudaSplitTerms = 2;
inline constexpr int32_t kCudaSplitRows = 128;
constexpr size_t CudaSplitBytes(const OpLimits& limits) {
  const int32_t groups = (limits.max_rows + kCudaSplitRows - 1) / kCudaSplitRows;
  return static_cast<size_t>(groups) * kCudaSplitRows * static_cast<size_t>(limits.max_columns) *
         sizeof(uint16_t) * kCudaSplitTerms;
}

// Routed experts whose weights the host has (ops/cuda/host_expert_stream.h): of a batch of them the
// weights in bf16, in whole panels and chunks, and products of max_rows pairs; of packed ones the
// ring, which has as many places as it has room for batches in their format; and the rows and
// weights of all pairs.
inline constexpr int kCudaHostExperts = 8;      // of a batch
inline constexpr int kCudaHostPlaces = 5;       // of int8
inline constexpr int kCudaLeastHostPlaces = 3;  // of any format, if need be with fewer experts
int64_t CudaDecodedExpertElements(const HostExpertShape& shape);
size_t CudaHostExpertBytes(const OpLimits& limits);
size_t CudaHostRingBytes(const HostExpertShape& shape);
size_t CudaHostExpertListBytes(const HostExpertShape& shape, int64_t max_rows);

// What matrices pass through on their way to 8-bit codes, two of them in turn.
inline constexpr size_t kCudaCodeStagingBytes = size_t{16} << 20;

// What the kernels of one operation leave for each other, all of the above in the same place: those
// of the next operation write nothing before these have ended (ops/cuda/launch.cuh).
size_t CudaOperationBytes(const OpLimits& limits);

// Counters of hand-overs (ops/cuda/handover.h), and what a step knows of them.
inline constexpr size_t kCudaHandoverBytes = 12;
inline constexpr size_t kCudaHandoverCountBytes = 8;

// Calls add(bytes) for each piece of device memory that the backend takes for itself.
template <typename Add>
void ForEachCudaScratch(const OpLimits& limits, const Add& add) {
  add(kCudaHandoverBytes);
  for (int32_t part = 0; part < limits.max_parts; ++part) add(CudaStepTableBytes(limits));
  add(CudaOperationBytes(limits));
  if (limits.host_experts.width > 0) {
    add(CudaHostRingBytes(limits.host_experts));
    add(CudaHostExpertListBytes(limits.host_experts, limits.max_rows));
  }
}
size_t CudaScratchBytes(const OpLimits& limits);

}  // namespace banyan
