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

struct T : Vnni, WithoutTiles<T> {
  static constexpr const char* kTier = "avx512_vnni";
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
