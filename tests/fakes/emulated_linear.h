// The CPU's products with AMX tiles (services/trunk/ops/cpu/linear_amx_kernel.h) over a model of
// the instructions.
#pragma once

#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::test {

// "amx_emulated"; null where this CPU lacks AVX-512 with BF16, which those kernels use besides.
const trunk::cpu::KernelTable* EmulatedAmxKernels();

}  // namespace banyan::test
