// The operations on one NVIDIA GPU (compute capability 8.0 or newer): bf16 and f32 weights, f32
// activations and state, f32 sums. Numbers: the kernels' headers.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

struct CudaBackendOptions {
  int device = 0;
  uint64_t vram_budget_bytes = 0;  // of our allocations; 0: what the device has
};

// The kernels' limits are checked by Reserve (kUnimplemented, with the number): head_dim at most
// 256, DeltaNet heads at most 128, at most kMaxExperts experts. A fault of the device is reported
// by Synchronize, ReadBack and Upload, from then on and with the operation that met it first; the
// backend does nothing more after it. Errors: OpenDevice's.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options);

// Whether there is a GPU to try.
bool CudaDevicePresent();

}  // namespace banyan::trunk
