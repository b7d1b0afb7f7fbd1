// Copies between a device and host memory that is not pinned: through pinned staging buffers, two
// of them in turn.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/op_scratch.h"
#include "services/trunk/ops/cuda/device_memory.h"

namespace banyan::trunk::cuda {

// Owns the events and the threads that copy on the host; the buffers are the DeviceMemory's. Copies
// of the device are queued on one stream, which is what the caller waits for. Thread-compatible.
class StagedCopies {
 public:
  // Of a staging buffer.
  static constexpr size_t kBufferBytes = kCudaCodeStagingBytes;

  // Takes pinned memory of 2 * kBufferBytes. `memory` and `stream` are borrowed: the memory
  // outlives the object, the stream every call but the destructor's. kResourceExhausted, kInternal.
  static absl::StatusOr<std::unique_ptr<StagedCopies>> Create(DeviceMemory* memory,
                                                              cudaStream_t stream);
  // Nothing queued may be under way any more, unless abandoned.
  ~StagedCopies();
  StagedCopies(const StagedCopies&) = delete;
  StagedCopies& operator=(const StagedCopies&) = delete;

  // The events are not destroyed: see AbandonDevices.
  void Abandon() {
    for (cudaEvent_t& event : staged_) event = nullptr;
  }

  // On the host, by several threads where that pays; done when this returns.
  void CopyOnHost(const std::byte* from, size_t bytes, std::byte* to);

  // To the device, in pieces: one buffer is filled while the other travels. The host memory may go
  // when this returns. CUDA's first error, with the pieces after it left out.
  cudaError_t QueueUpload(const void* host, size_t bytes, void* device);

  // At most kBufferBytes from the device to read_back(), where they are once the stream is waited
  // for, until the next copy is queued.
  cudaError_t QueueReadBack(const void* device, size_t bytes);
  const std::byte* read_back() const { return buffers_[0]; }

  // kBufferBytes of the device, contents undefined: where the rows of the next piece lie until they
  // are made to codes. One for each staging buffer, lent when first asked for; written again two
  // pieces later. Errors: DeviceMemory::Lend's.
  absl::StatusOr<std::byte*> DeviceBuffer();
  // Whether an arena has lent them.
  bool on_loan() const;
  // Gives them back, if on_loan(); nothing queued may be using them any more. Errors:
  // DeviceMemory::TakeBack's.
  absl::Status EndLoan();

 private:
  StagedCopies(DeviceMemory* memory, cudaStream_t stream);
  absl::Status Open();

  DeviceMemory* const memory_;
  cudaStream_t stream_;
  WorkerPool copiers_;
  std::byte* buffers_[2] = {};  // pinned
  cudaEvent_t staged_[2] = {};  // the buffer's last piece has left it
  int turn_ = 0;
  std::byte* device_buffers_[2] = {};
};

}  // namespace banyan::trunk::cuda
