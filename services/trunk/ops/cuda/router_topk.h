// Softmax over the experts and the largest top_k, one warp a row. Contract: Backend::RouterTopK.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int32_t kMaxRouterExperts = 1024;

// top_k <= num_experts <= kMaxRouterExperts. A logit that is no number counts as less than all
// others.
cudaError_t RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                       const float* logits, uint16_t* ids, float* weights, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
