// Gated softmax attention over a paged cache. Contracts: Backend::PrepareAttention, PagedAttention.
//
// A page holds keys as [num_kv_heads, 64, head_dim] and values as [num_kv_heads, head_dim, 64],
// f32 or bf16: both are read along their rows by the tensor-core product that uses them. Numbers of
// f32 are split in two bf16 and three of the four products summed, an error of 2^-16 relative to
// the sum of magnitudes; those of bf16 lose no more than in the rounding that made them.
//
// Keys are taken page by page. Each page gives a maximum, a sum and a weighted sum of values on its
// own, and pages are joined in order, whether one warp goes through all of them (prefill) or each
// is a CTA of its own (decode): a row's bits depend neither on the rows beside it nor on the way
// taken.
#pragma once

#include <cuda_runtime_api.h>

#include "services/trunk/ops/cuda/step_tables.h"

namespace banyan::trunk::cuda {

inline constexpr int32_t kMaxAttentionHeadDim = 256;

struct AttentionLaunch {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t group = 0;  // query heads of a key-value head
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;
  float eps = 0;
  float* q_gate = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  bool bf16_pages = false;  // else f32
  void* key_pages = nullptr;
  void* value_pages = nullptr;
  float* out = nullptr;
};

// Floats of what one page gives for one tile and key-value head: maxima, sums, weighted values.
constexpr int64_t PartialFloats(int32_t head_dim) {
  return int64_t{kVectorsPerTile} * (head_dim + 2);
}

cudaError_t PrepareAttention(const StepTables& step, const AttentionLaunch& args,
                             cudaStream_t stream);

// A warp goes through the pages of each of the step's tiles.
cudaError_t PagedAttention(const StepTables& step, const AttentionLaunch& args,
                           cudaStream_t stream);

// Consecutive tiles and their pages.
struct TileRange {
  int32_t first_tile = 0;
  int32_t num_tiles = 0;
  int32_t first_partial = 0;
  int32_t num_partials = 0;
};

// The same for a range of tiles, all pages at once. `partials` holds num_partials * num_kv_heads *
// PartialFloats. num_partials may be more than there are.
cudaError_t PagedAttentionSplit(const StepTables& step, const AttentionLaunch& args,
                                const TileRange& range, float* partials, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
