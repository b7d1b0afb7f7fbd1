// Brings a step's plan to the device: packed into pinned memory, two buffers in turn, and one copy.
// On the device, the tables of steps of the same numbers of rows, segments and tiles lie in the
// same places.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "services/trunk/ops/cuda/delta_chunks.h"
#include "services/trunk/ops/cuda/device_memory.h"
#include "services/trunk/ops/cuda/paged_attention.h"
#include "services/trunk/ops/cuda/step_tables.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cuda {

class StepUpload {
 public:
  StepUpload() = default;
  ~StepUpload();
  StepUpload(const StepUpload&) = delete;
  StepUpload& operator=(const StepUpload&) = delete;

  // Takes CudaStepTableBytes of the device, and as much pinned memory twice.
  absl::Status Reserve(const OpLimits& limits, DeviceMemory* memory);

  // Fills tables() and queues the copy. The plan's arrays may go after that. `handovers`: before
  // the step.
  cudaError_t Begin(const StepPlan& plan, const HandoverCounts& handovers, cudaStream_t stream);

  // The events are not destroyed: see AbandonDevices.
  void Abandon() {
    for (cudaEvent_t& event : copied_) event = nullptr;
  }

  const StepTables& tables() const { return tables_; }
  // All chunks of the step in pieces of what the workspace takes.
  const std::vector<ChunkRange>& chunk_ranges() const { return chunk_ranges_; }
  int32_t num_partials() const { return num_partials_; }  // pages of all tiles
  // Of the step's attention tiles; host side of tables().tiles.
  const std::vector<AttentionTile>& tiles() const { return tiles_; }

 private:
  static constexpr int kBuffers = 2;

  void CutTiles(const StepPlan& plan);
  void CutChunks(const StepPlan& plan);

  size_t bytes_ = 0;  // of one buffer
  int32_t group_ = 0;
  int32_t chunks_at_once_ = 0;
  std::byte* host_[kBuffers] = {};
  std::byte* device_ = nullptr;
  cudaEvent_t copied_[kBuffers] = {};
  int turn_ = 0;
  int32_t num_partials_ = 0;
  StepTables tables_;
  std::vector<AttentionTile> tiles_;
  std::vector<int32_t> first_chunk_;  // host sides of the tables of these names
  std::vector<int32_t> chunk_owner_;
  std::vector<ChunkRange> chunk_ranges_;
};

}  // namespace banyan::trunk::cuda
