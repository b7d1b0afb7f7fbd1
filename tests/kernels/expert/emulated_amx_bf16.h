// The AMX kernels of bf16 and nf4 over a model of the tile instructions, so that their indexing can
// be tested on a CPU that has AVX-512 BF16 and no tiles.
#pragma once

#if defined(__x86_64__)
#include "services/expert/kernels/packed_kernel_table.h"

namespace banyan::expert::testing {

extern const PackedKernels kEmulatedAmxBF16[kNumPackedF32];

}  // namespace banyan::expert::testing
#endif
