#include "tests/kernels/expert/emulated_amx.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "services/expert/kernels/packed_int_row.h"
#include "services/expert/kernels/target_region.h"
#include "tests/fakes/emulated_tiles.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
namespace banyan::expert {
namespace {
namespace emulated_amx {

#include "services/expert/kernels/packed_int_vnni-inl.h"
// On top of it:
#include "services/expert/kernels/packed_int_amx-inl.h"

using test::EmulatedTiles;
using T = Amx<EmulatedTiles>;

}  // namespace emulated_amx
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert::testing {

constinit const PackedKernels kEmulatedAmx[kNumPackedInt] = {
    emulated_amx::MakeKernels<emulated_amx::T, emulated_amx::Int8, Precision::kExact>(),
    emulated_amx::MakeKernels<emulated_amx::T, emulated_amx::Int8, Precision::kFast>(),
    emulated_amx::MakeKernels<emulated_amx::T, emulated_amx::Int4, Precision::kExact>(),
    emulated_amx::MakeKernels<emulated_amx::T, emulated_amx::Int4, Precision::kFast>(),
};

}  // namespace banyan::expert::testing
#endif
