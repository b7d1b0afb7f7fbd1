// bf16 and nf4 at kFast with AMX-BF16 tiles and AVX-512 with BF16.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/amx_tiles.h"
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

using T = Amx<HardwareTiles>;

}  // namespace amx_bf16
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

constinit const PackedKernels kPackedBF16Amx[kNumPackedBF16] = {
    amx_bf16::MakeKernels<amx_bf16::T, amx_bf16::BF16Format>(Precision::kFast),
    amx_bf16::MakeKernels<amx_bf16::T, amx_bf16::NF4Format>(Precision::kFast),
};

}  // namespace banyan::expert
#endif
