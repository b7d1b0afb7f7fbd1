// The integer formats with AVX-512 F, BW, DQ, VL and VNNI.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "services/expert/kernels/packed_int_row.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/kernels/target_region.h"

BANYAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
namespace banyan::expert {
namespace {
namespace avx512_vnni {

#include "services/expert/kernels/packed_int_vnni-inl.h"

struct T : Vnni {
  static constexpr const char* kTier = "avx512_vnni";
  template <class F>
  static constexpr int32_t GroupRows(Precision e, int32_t) {
    return MaxRows(e);
  }
  template <class F>
  static constexpr bool UniformRows(Precision, int32_t) {
    return false;
  }
  static constexpr int64_t BlockRowBytes(Precision, int64_t) { return 0; }
  template <class F, Precision E>
  static void Begin(const BlockArgs&) {}
  template <class F, Precision E>
  static void End(const BlockArgs&) {}
  template <class F, Precision E, int P>
  static bool RunPanels(const PanelsArgs&) {
    return false;
  }
  static constexpr int64_t kTileScratchBytes = 0;
  static constexpr int64_t kScratchBytes = 64 << 10;
  template <class F, Precision E, int P>
  static void Tile(const TileArgs& a) {
    TileUpTo<F, E, P>(a);
  }
};

}  // namespace avx512_vnni
}  // namespace
}  // namespace banyan::expert
BANYAN_TARGET_END

namespace banyan::expert {

constinit const PackedKernels kPackedIntVnni[kNumPackedInt] = {
    avx512_vnni::MakeKernels<avx512_vnni::T, avx512_vnni::Int8, Precision::kExact>(),
    avx512_vnni::MakeKernels<avx512_vnni::T, avx512_vnni::Int8, Precision::kFast>(),
    avx512_vnni::MakeKernels<avx512_vnni::T, avx512_vnni::Int4, Precision::kExact>(),
    avx512_vnni::MakeKernels<avx512_vnni::T, avx512_vnni::Int4, Precision::kFast>(),
};

}  // namespace banyan::expert
#endif
