// Gated DeltaNet: the recurrence token by token and in chunks of 64, and the gated norm. Contract:
// Backend::DeltaNet; mathematics: model spec 3.4.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "services/trunk/ops/cuda/delta_chunks.h"
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
  // Of a range of chunks, chunk by chunk and head by head; used by prefill alone.
  ChunkKeys* chunk_keys = nullptr;    // [chunks, num_key_heads]
  ChunkGates* chunk_gates = nullptr;  // [chunks, num_value_heads]
};

// Segments step.recurrent: the state in registers of one CTA per head. delta_net_decode.cu
cudaError_t DeltaNetDecode(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream);

// What of these chunks does not depend on the state. delta_net_chunks.cu
cudaError_t DeltaNetChunks(const StepTables& step, const DeltaLaunch& args, const ChunkRange& range,
                           cudaStream_t stream);

// The recurrence over these chunks, to `out` before its norm; after DeltaNetChunks of the same.
// delta_net_prefill.cu
cudaError_t DeltaNetPrefill(const StepTables& step, const DeltaLaunch& args,
                            const ChunkRange& range, cudaStream_t stream);

// The gated norm of all chunks. gated_norm.cu
cudaError_t GatedNorm(const StepTables& step, const DeltaLaunch& args, cudaStream_t stream);

// Once per device, before the first launch: raises limits on shared memory.
cudaError_t PrepareDeltaNetChunks();
cudaError_t PrepareDeltaNetPrefill();

}  // namespace banyan::trunk::cuda
