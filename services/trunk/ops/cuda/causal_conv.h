// Causal depthwise convolution with carried state, SiLU, l2 norms of q and k, and the gates of the
// recurrence. Contract: Backend::CausalConv.
#pragma once

#include <cuda_runtime_api.h>

#include "services/trunk/ops/cuda/delta_shape.h"
#include "services/trunk/ops/cuda/step_tables.h"

namespace banyan::trunk::cuda {

struct ConvLaunch {
  DeltaShape shape;
  const float* qkvz = nullptr;
  const float* ba = nullptr;
  const float* weight = nullptr;
  const float* neg_decay_rate = nullptr;
  const float* dt_bias = nullptr;
  float* conv_states = nullptr;
  float* qkv = nullptr;
  float* log_decay = nullptr;
  float* beta = nullptr;
};

cudaError_t CausalConv(const StepTables& step, const ConvLaunch& args, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
