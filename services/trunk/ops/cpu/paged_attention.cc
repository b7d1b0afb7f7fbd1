#include "services/trunk/ops/cpu/paged_attention.h"

#include <algorithm>
#include <cmath>

#include "common/base/check.h"
#include "common/plan/op_scratch.h"

namespace banyan::trunk::cpu {

void PagedAttention::Reserve(const OpLimits& limits, int num_threads) {
  static_assert(kPartitionPages == kCpuPartitionPages);
  const CpuAttentionScratch scratch = CpuAttentionScratchOf(limits);
  rows_per_tile_ = scratch.rows_per_tile;
  if (rows_per_tile_ == 0) return;
  sums_floats_ = scratch.sums_floats;
  thread_floats_ = scratch.thread_floats;
  max_partials_ = scratch.max_partials;
  thread_scratch_.resize(static_cast<size_t>(thread_floats_ * num_threads));
  partials_.resize(static_cast<size_t>(max_partials_ * sums_floats_));
  tiles_.reserve(static_cast<size_t>(limits.max_rows));
  first_partial_.reserve(static_cast<size_t>(limits.max_rows));
}

void PagedAttention::BeginStep(const StepPlan& plan) {
  tiles_.clear();
  first_partial_.clear();
  num_partials_ = 0;
  cost_ = 0;
  if (rows_per_tile_ == 0) return;
  int32_t most_partitions = 0;
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const PlanSegment& segment = plan.segments[i];
    int32_t row = 0;
    while (row < segment.num_rows) {
      const int32_t position = segment.first_position + row;
      const int32_t to_grid = rows_per_tile_ - position % rows_per_tile_;
      const int32_t rows = std::min(to_grid, segment.num_rows - row);
      const int64_t last_page = (position + rows - 1) / kOpsPageTokens;
      const auto partitions = static_cast<int32_t>(last_page / kPartitionPages + 1);
      tiles_.push_back({static_cast<int32_t>(i), segment.first_row + row, rows, partitions});
      first_partial_.push_back(num_partials_);
      num_partials_ += partitions;
      most_partitions = std::max(most_partitions, partitions);
      cost_ += rows * (last_page + 1) * kOpsPageTokens;
      row += rows;
    }
  }
  split_ = most_partitions > 1;
}

void PagedAttention::Prepare(const KernelTable& kernels, const Parallel& parallel,
                             const StepPlan& plan, const AttentionArgs& args) const {
  const AttentionShape& s = args.shape;
  const int64_t half = s.rotary_dim / 2;
  // A tile is a segment's rows for one head, in runs of 16 rows: q heads, then kv heads.
  constexpr int64_t kRun = 16;
  const int64_t heads = s.num_heads + s.num_kv_heads;
  const int64_t runs = (plan.num_rows + kRun - 1) / kRun;
  const int64_t cost = int64_t{plan.num_rows} * heads * s.head_dim * 8;
  parallel.For(runs * heads, cost, [&](int64_t tile, int) {
    const int64_t head = tile % heads;
    const int64_t begin = tile / heads * kRun;
    const int64_t end = std::min<int64_t>(begin + kRun, plan.num_rows);
    // The segment of the run's first row.
    size_t segment = 0;
    while (plan.segments[segment].first_row + plan.segments[segment].num_rows <= begin) ++segment;
    for (int64_t row = begin; row < end; ++row) {
      NormRopeHead norm = {.cos = plan.rope_cos.data() + row * half,
                           .sin = plan.rope_sin.data() + row * half,
                           .head_dim = s.head_dim,
                           .rotary_dim = s.rotary_dim,
                           .eps = s.eps};
      if (head < s.num_heads) {
        norm.out = args.q_gate + (row * s.num_heads + head) * 2 * s.head_dim;
        norm.x = norm.out;
        norm.weight = args.q_norm;
        kernels.norm_rope_head(norm);
        continue;
      }
      const int64_t kv_head = head - s.num_heads;
      const PlanSegment* owner = &plan.segments[segment];
      if (row >= owner->first_row + owner->num_rows) owner = &plan.segments[++segment];
      const int32_t position = plan.positions[static_cast<size_t>(row)];
      const int64_t page =
          plan.page_ids[static_cast<size_t>(owner->first_page + position / kOpsPageTokens)];
      const int64_t token = position % kOpsPageTokens;
      const int64_t base = page * args.page_elements() + kv_head * s.head_dim * kOpsPageTokens;
      const int64_t from = (row * s.num_kv_heads + kv_head) * s.head_dim;
      // k is normed where it lies and then scattered.
      norm.out = args.k + from;
      norm.x = norm.out;
      norm.weight = args.k_norm;
      kernels.norm_rope_head(norm);
      float* key = static_cast<float*>(args.key_pages) + base + token;
      for (int64_t d = 0; d < s.head_dim; ++d) key[d * kOpsPageTokens] = norm.out[d];
      std::copy_n(args.v + from, s.head_dim,
                  static_cast<float*>(args.value_pages) + base + token * s.head_dim);
    }
  });
}

AttentionTile PagedAttention::MakeTile(const StepPlan& plan, const AttentionArgs& args,
                                       const Tile& tile, int64_t kv_head, float* scratch) const {
  const AttentionShape& s = args.shape;
  const PlanSegment& segment = plan.segments[static_cast<size_t>(tile.segment)];
  const int64_t group = s.num_heads / s.num_kv_heads;
  const int64_t row_floats = int64_t{s.num_heads} * 2 * s.head_dim;
  const int64_t head_floats = kv_head * s.head_dim * kOpsPageTokens;
  return {.q = args.q_gate + tile.first_row * row_floats + kv_head * group * 2 * s.head_dim,
          .ld_q = row_floats,
          .head_stride = 2 * s.head_dim,
          .num_rows = tile.num_rows,
          .group = group,
          .head_dim = s.head_dim,
          .first_position = segment.first_position + tile.first_row - segment.first_row,
          .pages = plan.page_ids.data() + segment.first_page,
          .keys = static_cast<const float*>(args.key_pages) + head_floats,
          .values = static_cast<const float*>(args.value_pages) + head_floats,
          .page_stride = args.page_elements(),
          .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)),
          .scratch = scratch};
}

void PagedAttention::Finish(const KernelTable& kernels, const AttentionArgs& args, const Tile& tile,
                            int64_t kv_head, const AttentionTile& attention,
                            const AttentionSums& sums) const {
  const AttentionShape& s = args.shape;
  kernels.finish_attention(
      attention, sums,
      {.gate = attention.q + s.head_dim,
       .ld_gate = attention.ld_q,
       .head_stride = attention.head_stride,
       .out = args.out +
              (tile.first_row * int64_t{s.num_heads} + kv_head * attention.group) * s.head_dim,
       .ld_out = int64_t{s.num_heads} * s.head_dim});
}

void PagedAttention::Run(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
                         const AttentionArgs& args) {
  const AttentionShape& s = args.shape;
  const int64_t kv_heads = s.num_kv_heads;
  const auto num_tiles = static_cast<int64_t>(tiles_.size());
  const int64_t cost = cost_ * s.num_heads * s.head_dim * 2;
  const auto scratch = [&](int thread) { return thread_scratch_.data() + thread * thread_floats_; };
  const auto sums_at = [&](float* base, const AttentionTile& tile) {
    return PlaceSums(base, tile.num_rows * tile.group);
  };
  const bool split = split_ && parallel.num_threads() > 1 &&
                     num_tiles * kv_heads < 2 * parallel.num_threads() &&
                     num_partials_ * kv_heads <= max_partials_;
  if (!split) {
    parallel.For(num_tiles * kv_heads, cost, [&](int64_t item, int thread) {
      const Tile& tile = tiles_[static_cast<size_t>(item / kv_heads)];
      const AttentionTile attention = MakeTile(plan, args, tile, item % kv_heads, scratch(thread));
      const int64_t num = attention.num_rows * attention.group;
      float* base = scratch(thread) + thread_floats_ - 2 * sums_floats_;
      const AttentionSums total = sums_at(base, attention);
      const AttentionSums part = sums_at(base + sums_floats_, attention);
      kernels.attend(attention, 0, kPartitionPages, total);
      for (int64_t p = 1; p < tile.num_partitions; ++p) {
        kernels.attend(attention, p * kPartitionPages, (p + 1) * kPartitionPages, part);
        kernels.merge_sums(total, part, num, s.head_dim);
      }
      Finish(kernels, args, tile, item % kv_heads, attention, total);
    });
    return;
  }
  // Few tiles, long contexts: partitions in parallel, then joined in the same order as above.
  const auto partial = [&](size_t tile, int64_t kv_head, int64_t partition) {
    return partials_.data() +
           ((first_partial_[tile] + partition) * kv_heads + kv_head) * sums_floats_;
  };
  parallel.For(num_partials_ * kv_heads, cost, [&](int64_t item, int thread) {
    const int64_t kv_head = item % kv_heads;
    const int64_t index = item / kv_heads;
    size_t tile = tiles_.size() - 1;
    while (first_partial_[tile] > index) --tile;
    const int64_t p = index - first_partial_[tile];
    const AttentionTile attention = MakeTile(plan, args, tiles_[tile], kv_head, scratch(thread));
    kernels.attend(attention, p * kPartitionPages, (p + 1) * kPartitionPages,
                   sums_at(partial(tile, kv_head, p), attention));
  });
  for (size_t tile = 0; tile < tiles_.size(); ++tile) {
    for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      const AttentionTile attention = MakeTile(plan, args, tiles_[tile], kv_head, scratch(0));
      const AttentionSums total = sums_at(partial(tile, kv_head, 0), attention);
      for (int64_t p = 1; p < tiles_[tile].num_partitions; ++p) {
        kernels.merge_sums(total, sums_at(partial(tile, kv_head, p), attention),
                           attention.num_rows * attention.group, s.head_dim);
      }
      Finish(kernels, args, tiles_[tile], kv_head, attention, total);
    }
  }
}

}  // namespace banyan::trunk::cpu
