// Shares attention between threads by rows, key-value heads and, where a few rows look far back, by
// partitions of the keys. Contracts: Backend::PrepareAttention, Backend::PagedAttention.
//
// Layout of a page: keys [num_kv_heads, head_dim, 64] with the token fastest, so that scores of 64
// keys are one matrix product without transposes; values [num_kv_heads, 64, head_dim].
#pragma once

#include <cstdint>
#include <vector>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/parallel.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cpu {

// Keys are summed within partitions of 1024 positions, on the absolute grid, and partitions are
// joined in order: always, so that one thread and many give the same bits.
inline constexpr int64_t kPartitionPages = 16;

class PagedAttention {
 public:
  // Allocates CpuAttentionBytes.
  void Reserve(const OpLimits& limits, int num_threads);

  // Cuts the step's rows into tiles.
  void BeginStep(const StepPlan& plan);

  void Prepare(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
               const AttentionArgs& args) const;
  void Run(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
           const AttentionArgs& args);

 private:
  struct Tile {
    int32_t segment = 0;
    int32_t first_row = 0;  // of the step
    int32_t num_rows = 0;
    int32_t num_partitions = 0;
  };

  AttentionTile MakeTile(const StepPlan& plan, const AttentionArgs& args, const Tile& tile,
                         int64_t kv_head, float* scratch) const;
  void Finish(const KernelTable& kernels, const AttentionArgs& args, const Tile& tile,
              int64_t kv_head, const AttentionTile& attention, const AttentionSums& sums) const;

  int32_t rows_per_tile_ = 0;
  int64_t sums_floats_ = 0;    // of one tile
  int64_t thread_floats_ = 0;  // tile scratch and two sums
  int64_t max_partials_ = 0;
  std::vector<float> thread_scratch_;
  std::vector<float> partials_;         // [max_partials_][sums_floats_]
  std::vector<Tile> tiles_;             // of the step
  std::vector<int64_t> first_partial_;  // of each tile, times kv heads; used when split_
  int64_t num_partials_ = 0;            // per kv head
  int64_t cost_ = 0;
  bool split_ = false;
};

}  // namespace banyan::trunk::cpu
