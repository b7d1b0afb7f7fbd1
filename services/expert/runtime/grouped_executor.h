// What every executor does whatever its weights are: check a call, group its rows by expert, cut
// the work into tiles, sum and round the reply.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/parallel/worker_pool.h"
#include "common/pool/shard.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/runtime/expert_executor.h"
#include "services/expert/runtime/row_grouping.h"

namespace banyan::expert {

// 64-byte aligned memory, zero when made; grown, never shrunk.
class ScratchBuffer {
 public:
  // Grown to what `bytes` and `spare` are together: of needs that differ from call to call.
  void Reserve(int64_t bytes, int64_t spare = 0);
  std::byte* data() const { return data_.get(); }

 private:
  struct FreeDeleter {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, FreeDeleter> data_;
  int64_t size_ = 0;
};

// A call's work list is all (expert, tile of width) pairs of gate and up, one barrier, then tiles
// of the output, each over all experts in ascending order; for many rows tiles of (expert, output)
// again, another barrier, and the sum of each row's experts in that order. Rows beyond what the
// scratch holds form further blocks, one after the other; none of that changes a bit of a row.
class GroupedExecutor : public ExpertExecutor {
 public:
  struct Options {
    // Activations and hidden vectors of a block of rows; grows to this with the largest call.
    size_t max_scratch_bytes = 64 << 20;
    // From so many (row, expert) pairs on down is cut by expert, with four threads or more.
    int64_t min_pairs_by_expert = 512;
    size_t max_product_bytes = kMaxProductBytes;
  };

  // What a successful call did; for metrics.
  struct CallStats {
    int64_t num_pairs = 0;      // (row, expert)
    int64_t num_experts = 0;    // distinct ones, summed over blocks
    uint64_t weight_bytes = 0;  // read from them
    // Seconds, summed over blocks: rows grouped and prepared, gate and up, down and the reply.
    double prepare_s = 0;
    double gate_up_s = 0;
    double down_s = 0;
  };

  const ShardGeometry& geometry() const override { return geometry_; }
  absl::Status Run(const ExpertCall& call) override;
  const CallStats& last_call() const { return last_call_; }

 protected:
  // How the outputs of a loop are cut: at multiples of `unit`, at most max_tile a tile.
  struct Cut {
    int32_t unit = 1;
    int32_t max_tile = 1;
  };
  struct RowLayout {
    int64_t x_bytes = 0;       // of a row of activations, a multiple of 64
    int64_t hidden_bytes = 0;  // of the hidden vector of a pair, a multiple of 64
    // Such places that hidden vectors of a group take.
    int32_t (*hidden_rows)(int32_t num_pairs) = SameNumber;
    Cut gate_up;
    Cut down;
  };
  // A range of outputs of one expert, over the pairs of its group.
  struct Tile {
    int32_t expert = 0;  // counted from the shard's first
    int32_t first_output = 0;
    int32_t end_output = 0;
    int32_t num_rows = 0;
    const int32_t* rows = nullptr;
    const float* routing_weights = nullptr;
    const std::byte* x = nullptr;
    std::byte* hidden = nullptr;  // of the group's first pair
    RowLayout layout;
    int thread = 0;
    bool add = true;  // of Down: to what the sums are; else as if they were zero
    // What this thread will probably run next, in the same half; -1: not known. For prefetching.
    int32_t next_expert = -1;
    int32_t next_output = 0;
    // The pairs that go with it, where they are another group's.
    int32_t num_next_rows = 0;
    const int32_t* next_rows = nullptr;
    const std::byte* next_hidden = nullptr;
  };

  // All borrowed. The pool is used by the thread that calls Run; `elementwise` widens and narrows.
  GroupedExecutor(const Options& options, const ShardGeometry& geometry,
                  const FfnKernels& elementwise, WorkerPool& pool);

  virtual bool HasExperts(int32_t layer) const = 0;
  virtual uint64_t ExpertBytes(int32_t layer, int32_t expert) const = 0;
  // Once for each call, before the others.
  virtual RowLayout BeginCall(const ExpertCall& call) = 0;
  // `x`: hidden_size activations of call.activation_type, at any address.
  virtual void PrepareRow(const std::byte* x, ActivationType type, std::byte* out, int thread) = 0;
  virtual void GateUp(const Tile& tile) = 0;
  // Output o of row r is summed at sum + r * sum_stride + o.
  virtual void Down(const Tile& tile, float* sum, int64_t sum_stride) = 0;

  const FfnKernels& elementwise() const { return elementwise_; }
  int num_threads() const { return pool_.num_threads(); }

 private:
  absl::Status Check(const ExpertCall& call);
  void RunBlock(const ExpertCall& call, const RowLayout& layout, int32_t first_row,
                int32_t num_rows);
  void PrepareRows(const ExpertCall& call, const RowLayout& layout, int32_t first_row,
                   int32_t num_rows);
  void GateUpAll(const RowLayout& layout, bool small);
  void DownAll(const ExpertCall& call, const RowLayout& layout, int32_t first_row, int32_t num_rows,
               bool small);
  // down_by_expert.cc
  void DownByExpert(const ExpertCall& call, const RowLayout& layout, int32_t first_row,
                    int32_t num_rows);
  // Outputs [first, end) of a row of the call.
  void Reply(const ExpertCall& call, int64_t row, int32_t first, int32_t end,
             const float* sums) const;
  Tile TileOf(const ExpertGroup& group, const RowLayout& layout, int32_t first, int32_t end,
              int thread) const;
  // The group that is so many places behind the longest.
  const ExpertGroup& ByLength(int64_t number) const;
  // Fills in what comes after `tile`: output `first` of `next`.
  void SetNext(const ExpertGroup& next, int32_t first, Tile* tile) const;

  const ShardGeometry geometry_;
  const FfnKernels& elementwise_;
  WorkerPool& pool_;
  const size_t max_scratch_bytes_;
  const int64_t min_pairs_by_expert_;
  const size_t max_product_bytes_;
  RowGrouping grouping_;
  ScratchBuffer x_;       // [rows of a block, x_bytes]
  ScratchBuffer hidden_;  // [pairs of a block, hidden_bytes]
  // Of each thread: f32 [rows of a block, outputs of a tile]. Not in place: rows of the reply lie 8
  // KiB apart, and so many of them share few sets of a cache.
  std::vector<ScratchBuffer> sums_;
  // Of DownByExpert: f32 [pairs of a block, outputs of a slice], and 0, 1, ... to the most pairs.
  ScratchBuffer products_;
  std::vector<int32_t> numbers_;
  CallStats last_call_;
};

}  // namespace banyan::expert
