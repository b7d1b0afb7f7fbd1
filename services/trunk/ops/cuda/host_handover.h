// The host's side of hand-overs with a device (handover.h): shared buffers, their copies, the
// counts of both directions, and the wait for the device's flag.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/trunk/ops/cuda/device_memory.h"
#include "services/trunk/ops/cuda/handover.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cuda {

// Copies are queued on one stream; all memory is the DeviceMemory's. Thread-compatible.
class HostHandover {
 public:
  // Up to here a kernel that touches mapped host memory is faster than the copy engine: it writes
  // as fast as the link, and reads at 7 GB/s (H200).
  static constexpr size_t kMappedWriteBytes = size_t{128} << 10;
  static constexpr size_t kMappedReadBytes = size_t{32} << 10;
  // The same for one that asks for all of it at once.
  static constexpr size_t kMappedReadAtOnceBytes = size_t{256} << 10;

  // Takes pinned memory for the flags. `memory` and `stream` are borrowed: the memory outlives the
  // object, the stream every call but the destructor's. kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<HostHandover>> Create(DeviceMemory* memory,
                                                              cudaStream_t stream);
  HostHandover(const HostHandover&) = delete;
  HostHandover& operator=(const HostHandover&) = delete;

  // Both sides zeroed. With the first buffer come the device's counts, kCudaHandoverBytes: nothing
  // is handed over before. kResourceExhausted.
  absl::StatusOr<SharedBuffer> NewBuffer(size_t bytes);

  // Told of each kernel (bytes 0) and of each copy of the copy engine's when it is queued. One that
  // fails does not keep those after it from being tried.
  using Outcome = absl::FunctionRef<void(cudaError_t error, int32_t copies, int32_t bytes)>;
  // At most kMaxSharedCopies, and the hand-over that goes with them. That to the host is not yet
  // counted; that to the device has the given turn.
  void QueueToHost(std::span<const SharedCopy> copies, Outcome outcome) const;
  void QueueToDevice(std::span<const SharedCopy> copies, const ReleaseTurn& turn,
                     Outcome outcome) const;

  // For kernels that hand over by themselves.
  HandoverState* state() const { return state_; }  // device
  HandoverFlags* flags() const { return flags_; }  // pinned

  // A hand-over to the host is queued and will be waited for.
  void CountToHost() { ++queued_.to_host; }
  // The stream was waited for, and with it all of them.
  void CountAllAwaited() { awaited_ = queued_.to_host; }
  // Waits for the oldest one counted that was not, if any; what the device wrote before it is
  // visible then. Asks now and then whether the stream is done, after which the hand-over must have
  // come; an error ends the wait.
  absl::Status Await(absl::FunctionRef<absl::StatusOr<bool>()> stream_done);

  // The turn of the next hand-over to the device, which is queued now.
  ReleaseTurn NextTurn() {
    ++queued_.to_device;
    return {nullptr, queued_};
  }
  // Of hand-overs that are queued together because they were recorded.
  void CountRecorded(const HandoverCounts& counts) {
    queued_.to_host += counts.to_host;
    queued_.to_device += counts.to_device;
  }
  const HandoverCounts& queued() const { return queued_; }

  // The oldest hand-over to the device that was not yet released may go on, and sees what the host
  // wrote before.
  void Release();

 private:
  HostHandover(DeviceMemory* memory, cudaStream_t stream) : memory_(memory), stream_(stream) {}

  void Queue(std::span<const SharedCopy> copies, const ReleaseTurn* turn, Outcome outcome) const;

  DeviceMemory* const memory_;
  cudaStream_t stream_;
  HandoverState* state_ = nullptr;
  HandoverFlags* flags_ = nullptr;
  HandoverCounts queued_;
  uint32_t awaited_ = 0;   // of those to the host
  uint32_t released_ = 0;  // of those to the device
};

}  // namespace banyan::trunk::cuda
