// bf16 and nf4 where AVX512_BF16 exists (the tier avx512_vnni stands for such machines), with
// VDPBF16PS: of kFast's rows in bf16, of kExact's as sums of two bf16.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace banyan::expert {
namespace {
namespace avx512_bf16 {

#include "services/expert/kernels/rows_bf16-inl.h"
// On top of it:
#include "services/expert/kernels/packed_panels-inl.h"
// On top of it:
#include "services/expert/kernels/packed_dots-inl.h"

struct BF16Dots : BF16Rows {
  // Rows x outputs + rows + 1 <= 32.
  static constexpr int kMaxRows = 6;
  static constexpr int Outputs(int num_rows) { return num_rows <= 3 ? 8 : 4; }
  static constexpr int kFusedRows = 4;
  static constexpr bool kHalves = true;
};

struct Fast : VectorTier<BF16Dots> {
  static constexpr const char* kTier = "avx512_vnni";
};
struct Exact : VectorTier<TwoRegisterDots<TwoTermRows>> {
  static constexpr const char* kTier = "avx512_vnni";
};

}  // namespace avx512_bf16
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

namespace tier = avx512_bf16;
constinit const PackedKernels kPackedBF16Avx512[kNumPackedF32] = {
    tier::MakeKernels<tier::Exact, tier::BF16Format>(Precision::kExact),
    tier::MakeKernels<tier::Fast, tier::BF16Format>(Precision::kFast),
    tier::MakeKernels<tier::Exact, tier::NF4Format>(Precision::kExact),
    tier::MakeKernels<tier::Fast, tier::NF4Format>(Precision::kFast),
};

}  // namespace banyan::expert
#endif
