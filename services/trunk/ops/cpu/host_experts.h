// Routed experts read from a pack, a panel of outputs after the other. Contract:
// Backend::HostExperts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/parallel.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cpu {

// Sums are those of linear_kernel.h, so a row's bits depend neither on the other pairs nor on the
// number of threads; threads share panels. Decoding a weight takes as long as some hundred
// multiply-adds: with fewer pairs than that for each expert, it is most of the time.
class HostExperts {
 public:
  // Allocates CpuHostExpertBytes.
  void Reserve(const OpLimits& limits, int num_threads);

  void Run(const KernelTable& kernels, const Parallel& parallel, const HostExpertsArgs& args);

 private:
  // Pairs of one expert that go through at once.
  struct Group {
    const std::byte* weights = nullptr;
    const int32_t* rows = nullptr;  // [num_pairs]
    const float* pair_weights = nullptr;
    int32_t num_pairs = 0;
  };
  // Outputs [16 * panel, ...) of one of the expert's matrices, of k inputs.
  struct Panel {
    const std::byte* matrix = nullptr;
    int64_t panel = 0;
    int64_t num_outputs = 0;  // of the matrix
    int64_t k = 0;
  };

  void Gather(const Parallel& parallel, const HostExpertsArgs& args, const Group& group);
  void GateAndUp(const KernelTable& kernels, const Parallel& parallel, const HostExpertsArgs& args,
                 const Group& group);
  void Down(const KernelTable& kernels, const Parallel& parallel, const HostExpertsArgs& args,
            const Group& group);
  // y [num_rows, panel's outputs] = its weights times x [num_rows, k].
  static void Multiply(const KernelTable& kernels, PoolFormat format, const Panel& panel,
                       const float* x, int32_t num_rows, float* decoded, float* y, int64_t ldy);
  float* ThreadScratch(int thread) { return thread_scratch_.data() + thread * thread_floats_; }

  HostExpertShape shape_;
  int32_t max_pairs_ = 0;
  int64_t thread_floats_ = 0;
  std::vector<float> input_;           // [max_pairs, hidden_size]
  std::vector<float> gate_;            // [max_pairs, width]; then what down_proj takes
  std::vector<float> up_;              // [max_pairs, width]
  std::vector<float> thread_scratch_;  // a decoded panel, then [max_pairs, kPanelOutputs]
};

}  // namespace banyan::trunk::cpu
