// The AMX kernels of the integer formats over a model of the tile instructions, so that their
// indexing can be tested on a CPU that has AVX-512 VNNI and no tiles.
#pragma once

#if defined(__x86_64__)
#include "services/expert/kernels/packed_kernel_table.h"

namespace banyan::expert::testing {

// The model CHECKs what the instructions would fault on: unconfigured tiles, shapes that do not
// fit, rows beyond the palette.
extern const PackedKernels kEmulatedAmx[kNumPackedInt];

}  // namespace banyan::expert::testing
#endif
