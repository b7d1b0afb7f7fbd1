// Contracts: Backend::RmsNorm, Backend::CombineFromHost.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/trunk/ops/cuda/handover.h"
#include "services/trunk/ops/cuda/prefetch.h"

namespace banyan::trunk::cuda {

cudaError_t RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                    const float* addend, float* x, float* out, cudaStream_t stream);

// What is added before the norm: x += routed + sigmoid(gate_logit) * shared, as soon as the host
// has released `routed`.
struct CombineLaunch {
  const float4* routed = nullptr;  // with `state`: host memory that the device maps
  const float4* shared = nullptr;
  const float* gate_logit = nullptr;
  HandoverState* state = nullptr;  // null: `routed` is there already
  const HandoverFlags* flags = nullptr;
  ReleaseTurn turn = {};
};

bool TakesCombine(int32_t n);

cudaError_t CombineNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                        const CombineLaunch& combine, float* x, float* out,
                        const Prefetch& prefetch, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
