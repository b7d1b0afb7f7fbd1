// Gated DeltaNet: the recurrence token by token and in chunks of 64, and the gated norm. Contract:
// Backend::DeltaNet; mathematics: model spec 3.4.
#pragma once

#include <cuda_runtime_api.h>

#include "services/trunk/ops/cuda/delta_shape.h"
#include "services/trunk/ops/cuda/step_tables.h"

namespace banyan::trunk::cuda {

struct DeltaLaunch {
  DeltaShape shape;
  const float* qkv = nullptr;
  const float* qkvz = nullptr;
  const float* log_decay = nullptr;
  const float* beta = nullptr;
  const float* norm_weight = nullptr;
  float* states = nullptr;
  float* out = nullptr;
};

// Segments step.recurrent: the state in registers of one CTA per head. delta_net_decode.cu
cudaError_t DeltaNetDecode(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream);

// Segments step.chunked. delta_net_prefill.cu
cudaError_t DeltaNetPrefill(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream);

// Once per device, before the first launch: raises the limit on shared memory.
cudaError_t PrepareDeltaNetPrefill();

}  // namespace banyan::trunk::cuda
