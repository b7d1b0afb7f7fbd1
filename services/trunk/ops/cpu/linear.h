// Shares matrix products between threads by outputs. Contract: Backend::Linear.
#pragma once

#include <cstdint>
#include <span>

#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/parallel.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cpu {

// At most kMaxLinearCalls calls. `scratch`: kLinearScratchBytes for each thread, 64-byte aligned.
void Linear(const KernelTable& kernels, const Parallel& parallel, std::byte* scratch,
            int32_t num_rows, std::span<const LinearArgs> calls);

}  // namespace banyan::trunk::cpu
