#include "services/trunk/ops/cuda/step_recordings.h"

#include <cstddef>

#include "common/base/check.h"

namespace banyan::trunk::cuda {
namespace {

// Steps of up to so many sequences that decode are recorded; shapes remembered at the most.
constexpr int32_t kMostRecordedRows = 64;
constexpr size_t kMostRecordings = 64;

// The next of 1, 2, 3, 4, 6, 8, 12, 16, ...
int32_t RoundedPages(int32_t pages) {
  int32_t power = 1;
  while (power < pages) power *= 2;
  return pages <= power / 4 * 3 ? power / 4 * 3 : power;
}

}  // namespace

StepRecordings::~StepRecordings() {
  for (auto& [shape, recorded] : recorded_) cudaGraphExecDestroy(recorded.graph);
}

// Kernels' arguments depend on the numbers of rows and tiles, and grids on the number of pages:
// that goes up by halves of powers of two.
std::optional<StepShape> StepRecordings::ShapeOf(const StepTables& step, int32_t num_partials) {
  if (step.num_rows > kMostRecordedRows || step.num_chunked > 0 ||
      step.num_segments != step.num_rows) {
    return std::nullopt;
  }
  return StepShape{step.num_rows, step.num_tiles, RoundedPages(num_partials)};
}

const StepRecordings::Recorded* StepRecordings::Find(const StepShape& shape) const {
  const auto found = recorded_.find(shape);
  return found != recorded_.end() ? &found->second : nullptr;
}

bool StepRecordings::full() const { return recorded_.size() >= kMostRecordings; }

cudaError_t StepRecordings::Start(const Recorded& recorded, cudaStream_t stream) {
  return cudaGraphLaunch(recorded.graph, stream);
}

cudaError_t StepRecordings::Begin(const StepShape& shape, cudaStream_t stream) {
  if (cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
      error != cudaSuccess) {
    return error;
  }
  recording_ = true;
  shape_ = shape;
  handovers_ = {};
  return cudaSuccess;
}

cudaError_t StepRecordings::End(bool keep, cudaStream_t stream) {
  CHECK(recording_);
  recording_ = false;
  cudaGraph_t graph = nullptr;
  if (cudaError_t error = cudaStreamEndCapture(stream, &graph); error != cudaSuccess) return error;
  Recorded recorded = {nullptr, handovers_};
  const cudaError_t error = keep ? cudaGraphInstantiate(&recorded.graph, graph, 0) : cudaSuccess;
  cudaGraphDestroy(graph);
  if (keep && error == cudaSuccess) recorded_[shape_] = recorded;
  return error;
}

}  // namespace banyan::trunk::cuda
