// bf16 and nf4 with AMX-BF16 tiles and AVX-512 with BF16.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/base/check.h"
#include "common/cpu/amx_tiles.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace banyan::expert {
namespace {
namespace amx_bf16 {

#include "services/expert/kernels/rows_bf16-inl.h"
// On top of it:
#include "services/expert/kernels/packed_panels-inl.h"
// On top of it:
#include "services/expert/kernels/packed_bf16_amx-inl.h"

using Exact = Amx<HardwareTiles, 2>;
using Fast = Amx<HardwareTiles, 1>;

}  // namespace amx_bf16
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

namespace tier = amx_bf16;
constinit const PackedKernels kPackedBF16Amx[kNumPackedF32] = {
    tier::MakeKernels<tier::Exact, tier::BF16Format>(Precision::kExact),
    tier::MakeKernels<tier::Fast, tier::BF16Format>(Precision::kFast),
    tier::MakeKernels<tier::Exact, tier::NF4Format>(Precision::kExact),
    tier::MakeKernels<tier::Fast, tier::NF4Format>(Precision::kFast),
};

}  // namespace banyan::expert
#endif
