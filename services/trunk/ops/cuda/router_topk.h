// Softmax over the experts and the largest top_k, one warp a row. Contract: Backend::RouterTopK.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/trunk/ops/cuda/handover.h"

namespace banyan::trunk::cuda {

inline constexpr int32_t kMaxRouterExperts = 1024;

// top_k <= num_experts <= kMaxRouterExperts. A logit that is no number counts as less than all
// others.
cudaError_t RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                       const float* logits, uint16_t* ids, float* weights, cudaStream_t stream);

// The same, and ids, weights and the experts' input to host memory that the device maps.
struct RouteLaunch {
  int32_t num_experts = 0;
  int32_t top_k = 0;
  bool renormalize = true;
  int32_t hidden_size = 0;
  const float* logits = nullptr;
  const float* input = nullptr;  // [num_rows, hidden_size]
  uint16_t* ids = nullptr;
  float* weights = nullptr;
  bool bf16_rows = false;     // round the rows on their way
  void* host_rows = nullptr;  // [num_rows, hidden_size] of bf16 or f32
  uint16_t* host_ids = nullptr;
  float* host_weights = nullptr;
  HandoverState* state = nullptr;
  HandoverFlags* flags = nullptr;
};

inline constexpr int32_t kMostHandedRows = 16;
bool TakesRouteAndHand(int32_t num_rows, int32_t hidden_size);
cudaError_t RouteAndHand(int32_t num_rows, const RouteLaunch& args, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
