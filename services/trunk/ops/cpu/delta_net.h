// Shares convolution and recurrence between threads by segment and head. Contracts:
// Backend::CausalConv, Backend::DeltaNet.
#pragma once

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/parallel.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cpu {

void CausalConv(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
                const CausalConvArgs& args);

// `scratch`: CpuThreadFloats floats for each thread, `scratch_stride` floats apart.
void DeltaNet(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
              const DeltaNetArgs& args, float* scratch, int64_t scratch_stride);

}  // namespace banyan::trunk::cpu
