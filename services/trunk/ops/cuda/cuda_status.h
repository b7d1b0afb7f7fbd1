// cudaError_t as absl::Status.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "absl/status/status.h"

namespace banyan::trunk::cuda {

// "what: <CUDA's words> (cudaErrorName)". kResourceExhausted for a lack of memory, else kInternal.
absl::Status CudaStatus(cudaError_t error, std::string_view what);

}  // namespace banyan::trunk::cuda
