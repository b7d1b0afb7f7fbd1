// The executor for packed weights (common/quant/pool_format.h).
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel/worker_pool.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/runtime/grouped_executor.h"

namespace banyan::expert {

// What an executor needs to know of a packed pool.
struct PackedTable {
  ShardGeometry geometry;
  PoolFormat format = PoolFormat::kInt8;
  uint64_t expert_bytes = 0;  // of each
  // [num_layers][num_shard_experts]; empty for a layer without routed experts.
  std::vector<std::vector<PackedExpert>> layers;
};

// The kernels of one format: `exact` for calls with f32 activations, `fast` for bf16 ones.
struct PackedKernelPair {
  const PackedKernels* exact = nullptr;
  const PackedKernels* fast = nullptr;
};

class PackedExecutor final : public GroupedExecutor {
 public:
  // All borrowed; `elementwise` widens and narrows.
  PackedExecutor(const Options& options, const PackedTable& table, const PackedKernelPair& kernels,
                 const FfnKernels& elementwise, WorkerPool& pool);

 private:
  // Of one thread, on cache lines of its own.
  struct alignas(64) Worker {
    ScratchBuffer kernel;         // of the larger of both tables
    ScratchBuffer row;            // f32 [hidden_size]
    void (*entered)() = nullptr;  // the last enter_thread that it called
  };

  bool HasExperts(int32_t layer) const override;
  uint64_t ExpertBytes(int32_t layer, int32_t expert) const override;
  RowLayout BeginCall(const ExpertCall& call) override;
  void PrepareRow(const std::byte* x, ActivationType type, std::byte* out, int thread) override;
  void GateUp(const Tile& tile) override;
  void Down(const Tile& tile, float* sum, int64_t sum_stride) override;
  // The thread's scratch; the thread is ready for the kernels of the call.
  Worker& Enter(int thread);
  const PackedExpert* NextOf(const Tile& tile) const;

  const PackedTable& table_;
  const PackedKernelPair pair_;
  std::vector<Worker> workers_;
  const PackedKernels* kernels_ = nullptr;            // of the call under way
  const std::vector<PackedExpert>* layer_ = nullptr;  // of the call under way
};

}  // namespace banyan::expert
