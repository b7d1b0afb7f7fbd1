// Routed experts whose weights come from host memory while those before them are computed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/plan/op_limits.h"
#include "common/plan/op_scratch.h"
#include "services/trunk/ops/cuda/device_memory.h"
#include "services/trunk/ops/cuda/host_expert_ring.h"
#include "services/trunk/ops/cuda/host_experts.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cuda {

// Packed weights pass through a ring, and what a place of it holds is decoded and multiplied by a
// few launches. Device memory is the DeviceMemory's. Thread-compatible.
class HostExpertStream {
 public:
  // Takes the ring and the lists of pairs, and pinned memory for these. `work`: of
  // CudaHostExpertBytes, where weights and products lie during an operation. All borrowed but what
  // it takes; `stream` is what operations are queued on. kResourceExhausted, kInternal.
  static absl::StatusOr<std::unique_ptr<HostExpertStream>> Create(const OpLimits& limits,
                                                                  DeviceMemory* memory,
                                                                  std::byte* work,
                                                                  cudaStream_t stream);
  // No operation may be under way any more, unless abandoned.
  ~HostExpertStream();
  HostExpertStream(const HostExpertStream&) = delete;
  HostExpertStream& operator=(const HostExpertStream&) = delete;

  // Nothing of it is given back: see AbandonDevices.
  void Abandon();

  // Contract: Backend::MapHost.
  absl::StatusOr<double> Map(std::span<const std::byte> memory);

  // Queues Backend::HostExperts; `rows` [num_rows, hidden_size] where the device reads them. Done
  // is told of each batch. The lists of the call before must have been used up: no two of them are
  // under way at once.
  using Outcome = absl::FunctionRef<void(cudaError_t error, int32_t pairs)>;
  void Queue(const HostExpertsArgs& args, const uint16_t* rows, Outcome done);

  // Contract: Backend::WillReadHostExperts.
  cudaError_t ReadAhead(const HostExpertWeights& next);

 private:
  HostExpertStream(const OpLimits& limits, cudaStream_t stream);
  absl::Status Open(DeviceMemory* memory, std::byte* work);
  cudaError_t QueueLists(const HostExpertsArgs& args);
  ExpertBatch BatchOf(const HostExpertsArgs& args, std::span<const HostExpert> experts,
                      const uint16_t* rows, const HostExpertRing::Batch& packed) const;
  DecodeLaunch DecodeOf(const HostExpertsArgs& args, const HostExpertRing::Batch& packed) const;
  // Of the batch's expert i, in bf16.
  uint16_t* Decoded(size_t i) const {
    return decoded_ + static_cast<int64_t>(i) * CudaDecodedExpertElements(shape_);
  }
  cudaError_t QueueBatch(const HostExpertsArgs& args, std::span<const HostExpert> experts,
                         const uint16_t* rows, const HostExpertRing::Batch& packed);

  const HostExpertShape shape_;
  const int64_t max_rows_;
  cudaStream_t stream_;
  HostExpertRing ring_;
  uint16_t* decoded_ = nullptr;   // of kMaxHostExperts
  uint16_t* products_ = nullptr;  // [max_rows, width in whole chunks]
  // Pairs of a call: rows, then weights.
  std::byte* lists_ = nullptr;
  std::byte* host_lists_ = nullptr;
  std::vector<void*> mapped_;
  double bytes_per_second_ = 0;  // from there, the best so far
};

}  // namespace banyan::trunk::cuda
