// The operations on one NVIDIA GPU (compute capability 8.0 or newer): bf16 and f32 weights, f32
// activations and state, f32 sums. Numbers: the kernels' headers.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "services/trunk/ops/collective/collective.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

struct CudaBackendOptions {
  int device = 0;
  uint64_t vram_budget_bytes = 0;    // of our allocations; 0: what the device has
  Collective* collective = nullptr;  // of the GPUs that share the model; null: alone
};

// The kernels' limits are checked by Reserve (kUnimplemented, with the number): head_dim at most
// 256, DeltaNet heads at most 128, at most kMaxExperts experts. A fault of the device is reported
// by Synchronize, ReadBack and Upload, from then on and with the operation that met it first; the
// backend does nothing more after it; the collective, which is borrowed and outlives the backend,
// is aborted with it. A backend is made and used on one thread, of which it sets the current
// device; the first step may come from another one. Errors: OpenDevice's.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options);

// Whether there is a GPU to try, and how many.
bool CudaDevicePresent();
int32_t CudaDeviceCount();

}  // namespace banyan::trunk
