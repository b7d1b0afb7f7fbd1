// Steps recorded as CUDA graphs, which run again for steps of the same shape.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <optional>
#include <tuple>

#include "services/trunk/ops/cuda/handover.h"
#include "services/trunk/ops/cuda/step_tables.h"

namespace banyan::trunk::cuda {

// What the arguments and the grids of a step's kernels depend on.
struct StepShape {
  int32_t num_rows = 0;
  int32_t num_tiles = 0;
  int32_t num_partials = 0;  // pages of all tiles, rounded up

  bool operator<(const StepShape& other) const {
    return std::tie(num_rows, num_tiles, num_partials) <
           std::tie(other.num_rows, other.num_tiles, other.num_partials);
  }
};

// Owns the graphs. What is queued on the stream between Begin and End is recorded, not run; all
// calls are of the same stream, which is borrowed. Thread-compatible.
class StepRecordings {
 public:
  struct Recorded {
    cudaGraphExec_t graph = nullptr;
    HandoverCounts handovers = {};  // of one run
  };

  StepRecordings() = default;
  // No graph may be running any more, unless abandoned.
  ~StepRecordings();
  StepRecordings(const StepRecordings&) = delete;
  StepRecordings& operator=(const StepRecordings&) = delete;

  // The graphs are not destroyed: see AbandonDevices.
  void Abandon() { recorded_.clear(); }

  // Recorded are steps in which a few sequences decode one token each; none for others.
  // num_partials: pages of all tiles.
  static std::optional<StepShape> ShapeOf(const StepTables& step, int32_t num_partials);

  // Steps of that shape, if there was one; valid until Abandon.
  const Recorded* Find(const StepShape& shape) const;
  // As many shapes are remembered as may be.
  bool full() const;

  // The next run; the tables of the step and all buffers lie where they were.
  static cudaError_t Start(const Recorded& recorded, cudaStream_t stream);

  // A shape that is not remembered, and not full(). recording() from here to End, unless it fails.
  cudaError_t Begin(const StepShape& shape, cudaStream_t stream);
  bool recording() const { return recording_; }
  const StepShape& shape() const { return shape_; }  // of the recording, or the last one
  // A hand-over, for Recorded; to the device: how many they are with it.
  void CountToHost() { ++handovers_.to_host; }
  const HandoverCounts& CountToDevice() {
    ++handovers_.to_device;
    return handovers_;
  }
  // Find has it afterwards, if this succeeds and it is to be kept: after a fault it is not whole.
  cudaError_t End(bool keep, cudaStream_t stream);

 private:
  bool recording_ = false;
  StepShape shape_;
  HandoverCounts handovers_;
  std::map<StepShape, Recorded> recorded_;
};

}  // namespace banyan::trunk::cuda
