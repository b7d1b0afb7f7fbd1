// ExpertExecutor on the CPU kernels and a worker pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/parallel/worker_pool.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/runtime/expert_executor.h"
#include "services/expert/runtime/expert_store.h"
#include "services/expert/runtime/row_grouping.h"

namespace banyan::expert {

// A call's work list is all (expert, tile of width) pairs of gate and up, one barrier, then tiles
// of the output, each over all experts in ascending order. Rows beyond what the scratch holds form
// further blocks, one after the other; that changes no bit of a row.
class CpuExecutor final : public ExpertExecutor {
 public:
  struct Options {
    // Activations, hidden vectors and sums of a block of rows; grows to this with the largest call.
    size_t max_scratch_bytes = 64 << 20;
  };

  // What a successful call did; for metrics.
  struct CallStats {
    int64_t num_pairs = 0;      // (row, expert)
    int64_t num_experts = 0;    // distinct ones, summed over blocks
    uint64_t weight_bytes = 0;  // read from them
  };

  // All borrowed. The pool is used by the thread that calls Run.
  CpuExecutor(const Options& options, const ExpertTable& table, const FfnKernels& kernels,
              WorkerPool& pool);

  const ShardGeometry& geometry() const override { return table_.geometry; }
  absl::Status Run(const ExpertCall& call) override;
  const CallStats& last_call() const { return last_call_; }

 private:
  struct FreeDeleter {
    void operator()(float* p) const;
  };
  // 64-byte aligned floats, zero when made; grown, never shrunk.
  struct Buffer {
    std::unique_ptr<float, FreeDeleter> data;
    int64_t size = 0;
    void Reserve(int64_t floats);
  };

  absl::Status Check(const ExpertCall& call);
  void RunBlock(const ExpertCall& call, int32_t first_row, int32_t num_rows);
  void LoadActivations(const ExpertCall& call, int32_t first_row, int32_t num_rows);
  void GateUp(const std::vector<ExpertWeights>& experts, bool in_caller);
  void Down(const ExpertCall& call, const std::vector<ExpertWeights>& experts, int32_t first_row,
            int32_t num_rows, bool in_caller);

  const ExpertTable& table_;
  const FfnKernels& kernels_;
  WorkerPool& pool_;
  const int64_t x_stride_;
  const int64_t hidden_stride_;
  const size_t max_scratch_bytes_;
  RowGrouping grouping_;
  Buffer x_;       // [rows of a block, x_stride_]
  Buffer hidden_;  // [pairs of a block, hidden_stride_]
  Buffer sum_;     // [rows of a block, hidden_size], unused for replies in f32
  CallStats last_call_;
};

}  // namespace banyan::expert
