// The integer formats with AMX-INT8 tiles, AVX-512 and VNNI.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "common/cpu/amx_tiles.h"
#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "services/expert/kernels/packed_int_row.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")
namespace banyan::expert {
namespace {
namespace amx {

#include "services/expert/kernels/packed_int_vnni-inl.h"
// On top of it:
#include "services/expert/kernels/packed_int_amx-inl.h"

using T = Amx<HardwareTiles>;

}  // namespace amx
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

constinit const PackedKernels kPackedIntAmx[kNumPackedInt] = {
    amx::MakeKernels<amx::T, amx::Int8, Precision::kExact>(),
    amx::MakeKernels<amx::T, amx::Int8, Precision::kFast>(),
    amx::MakeKernels<amx::T, amx::Int4, Precision::kExact>(),
    amx::MakeKernels<amx::T, amx::Int4, Precision::kFast>(),
};

}  // namespace banyan::expert
#endif
