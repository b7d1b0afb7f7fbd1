// The executor for weights in the checkpoint's own precision.
#pragma once

#include "common/parallel/worker_pool.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/runtime/expert_store.h"
#include "services/expert/runtime/grouped_executor.h"

namespace banyan::expert {

class CpuExecutor final : public GroupedExecutor {
 public:
  // All borrowed.
  CpuExecutor(const Options& options, const ExpertTable& table, const FfnKernels& kernels,
              WorkerPool& pool);

 private:
  bool HasExperts(int32_t layer) const override;
  uint64_t ExpertBytes(int32_t layer, int32_t expert) const override;
  RowLayout BeginCall(const ExpertCall& call) override;
  void PrepareRow(const std::byte* x, ActivationType type, std::byte* out, int thread) override;
  void GateUp(const Tile& tile) override;
  void Down(const Tile& tile, float* sum, int64_t sum_stride) override;

  const ExpertTable& table_;
  const FfnKernels& kernels_;
  const std::vector<ExpertWeights>* layer_ = nullptr;  // of the call under way
};

}  // namespace banyan::expert
