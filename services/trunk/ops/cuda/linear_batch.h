// What a launch of linear.cu works on.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/trunk/ops/cuda/linear.h"

namespace banyan::trunk::cuda {

// Matrices over the same rows.
struct LinearBatch {
  LinearMatrix matrices[kMaxMatrices];
  int32_t first_cta[kMaxMatrices + 1];  // of a grid's CTAs along the outputs
  int32_t num_matrices;
  int32_t num_bf16;   // matrices; those of codes come after them
  int32_t bf16_ctas;  // that take tiles of these
  int32_t num_rows;
  const uint4* split;  // rows split ahead, or null
};

// Gives each matrix CTAs of so many outputs. Returns how many there are.
inline int32_t PlaceCtas(LinearBatch* batch, int32_t outputs_per_cta) {
  batch->first_cta[0] = 0;
  for (int i = 0; i < batch->num_matrices; ++i) {
    batch->first_cta[i + 1] =
        batch->first_cta[i] + (batch->matrices[i].n + outputs_per_cta - 1) / outputs_per_cta;
  }
  return batch->first_cta[batch->num_matrices];
}

}  // namespace banyan::trunk::cuda
