// Hand-overs between the device and the host while both run: copies between the two sides of shared
// buffers, and the flags that say when. Each side counts its hand-overs and shows the count to the
// other in host memory that both see; nobody enters the driver to wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int kMaxCopies = 4;

// In device memory, zero at first; touched by kernels alone.
struct HandoverState {
  uint32_t to_host = 0;    // hand-overs done
  uint32_t ctas_done = 0;  // of the one under way
  uint32_t released = 0;   // by the host, as far as kernels have seen
};

// In pinned host memory, on cache lines of their own.
struct HandoverFlags {
  alignas(64) volatile uint32_t to_host = 0;    // written by the device
  alignas(64) volatile uint32_t to_device = 0;  // written by the host: releases so far
};

// How many hand-overs there were, each way.
struct HandoverCounts {
  uint32_t to_host = 0;
  uint32_t to_device = 0;
};

// Which of the host's releases a kernel waits for: the last of counts.to_device, for which the host
// does not look before it has got counts.to_host hand-overs. Kernels of a recorded step count from
// the step's begin, all others from the first.
struct ReleaseTurn {
  const HandoverCounts* before = nullptr;  // the step, in device memory; null: none
  HandoverCounts counts = {};
};

struct Copy {
  const void* from = nullptr;
  void* to = nullptr;
  int64_t bytes = 0;  // counted up to a multiple of 16, which both sides must hold
};

struct HandoverLaunch {
  Copy copies[kMaxCopies];  // either side may be host memory that the device maps
  int num_copies = 0;       // 0: the flag alone
  HandoverState* state = nullptr;
  HandoverFlags* flags = nullptr;
  ReleaseTurn turn = {};  // of TakeFromHost
};

// Copies, then raises flags->to_host.
cudaError_t HandToHost(const HandoverLaunch& args, cudaStream_t stream);
// Waits for the host's release, then copies.
cudaError_t TakeFromHost(const HandoverLaunch& args, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
