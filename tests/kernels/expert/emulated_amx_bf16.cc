#include "tests/kernels/expert/emulated_amx_bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/target_region.h"
#include "tests/kernels/expert/emulated_tiles.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace banyan::expert {
namespace {
namespace emulated_amx_bf16 {

#include "services/expert/kernels/rows_bf16-inl.h"
// On top of it:
#include "services/expert/kernels/packed_panels-inl.h"
// On top of it:
#include "services/expert/kernels/packed_bf16_amx-inl.h"

using T = Amx<testing::EmulatedTiles>;

}  // namespace emulated_amx_bf16
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert::testing {

constinit const PackedKernels kEmulatedAmxBF16[kNumPackedBF16] = {
    emulated_amx_bf16::MakeKernels<emulated_amx_bf16::T, emulated_amx_bf16::BF16Format>(
        Precision::kFast),
    emulated_amx_bf16::MakeKernels<emulated_amx_bf16::T, emulated_amx_bf16::NF4Format>(
        Precision::kFast),
};

}  // namespace banyan::expert::testing
#endif
