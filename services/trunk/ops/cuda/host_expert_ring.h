// Packed experts on their way from the host's memory to the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/plan/op_limits.h"
#include "services/trunk/ops/cuda/device_memory.h"
#include "services/trunk/ops/cuda/host_experts.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cuda {

// Places of a few experts each, filled in turn by a stream of its own: while those of one are
// computed, the next ones come, and between two operations what the second is said to ask for. The
// memory is the DeviceMemory's. Thread-compatible.
class HostExpertRing {
 public:
  explicit HostExpertRing(cudaStream_t reader) : reader_(reader) {}
  // Copies may not be under way any more: Wait. Unless abandoned.
  ~HostExpertRing();
  HostExpertRing(const HostExpertRing&) = delete;
  HostExpertRing& operator=(const HostExpertRing&) = delete;

  // kResourceExhausted, kInternal.
  absl::Status Open(const HostExpertShape& shape, DeviceMemory* memory);
  // Until no copy reads the host's memory.
  void Wait();
  // Nothing of it is given back: see AbandonDevices.
  void Abandon();

  // Bytes a second, of memory that is mapped. Before the first copy.
  absl::StatusOr<double> MeasureRate(std::span<const std::byte> memory);

  // The first of some experts, on the device.
  struct Batch {
    int place = 0;
    size_t num_experts = 0;
    const std::byte* experts[kMaxHostExperts] = {};
  };
  // What the reader queues from here on finds them there, until Empty. At most kMaxHostExperts, one
  // at least, whose weights are `expert_bytes` each.
  cudaError_t Take(std::span<const HostExpert> experts, size_t expert_bytes, Batch* batch);
  // The reader has queued what reads the batch.
  cudaError_t Empty(const Batch& batch);

  // Contract: Backend::WillReadHostExperts. The copy engine takes copies as they come: what the
  // reader has queued, such as the hosts' sums, would wait for all of these.
  cudaError_t ReadAhead(std::span<const std::byte* const> weights, size_t expert_bytes);

 private:
  static constexpr int kMaxPlaces = 32;
  struct Place {
    cudaEvent_t filled = nullptr;
    cudaEvent_t emptied = nullptr;
    const std::byte* experts[kMaxHostExperts] = {};  // on the host
    size_t num_experts = 0;
  };

  cudaError_t Cut(size_t expert_bytes);
  cudaError_t FillNext(std::span<const std::byte* const> weights);
  int PlaceOf(int turn) const { return (turn + num_places_) % num_places_; }
  std::byte* MemoryOf(int place) const {
    return memory_ + static_cast<size_t>(place) * place_experts_ * expert_bytes_;
  }

  cudaStream_t reader_;
  cudaStream_t copies_ = nullptr;
  std::byte* memory_ = nullptr;
  size_t bytes_ = 0;
  Place places_[kMaxPlaces];
  cudaEvent_t announced_ = nullptr;  // in the reader's stream
  // As they are cut now.
  size_t expert_bytes_ = 0;
  size_t place_experts_ = 0;
  int num_places_ = 0;
  int turn_ = 0;   // the next to be filled
  int ahead_ = 0;  // so many before it have not been asked for, or not all that they hold
};

}  // namespace banyan::trunk::cuda
