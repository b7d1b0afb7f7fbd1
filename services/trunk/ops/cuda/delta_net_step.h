// Contract: Backend::ConvDeltaNet, for steps in which every sequence decodes one token.
#pragma once

#include <cuda_runtime_api.h>

#include "services/trunk/ops/cuda/causal_conv.h"
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/step_tables.h"

namespace banyan::trunk::cuda {

// Heads of 128, four taps, at most two value heads for a key head, one row for a segment.
bool TakesDeltaNetStep(const StepTables& step, const DeltaShape& shape);

// conv.qkv, log_decay and beta are left alone. states_settled: no kernel since the stream last
// waited for all before it, such as for the step's plan, writes the states of these slots.
cudaError_t DeltaNetStep(const StepTables& step, const ConvLaunch& conv, const DeltaLaunch& delta,
                         bool states_settled, int32_t num_sms, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
