// The integer formats with AMX-INT8 tiles, AVX-512 and VNNI. The process has the system's
// permission to use tiles: ReadCpuFeatures asked for it before it reported them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

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

// Written as assembly because GCC 12's intrinsics do not tell the compiler that a tile load reads
// memory: stores before it could move behind it.
struct HardwareTiles {
  static constexpr const char* kTier = "amx";
  static void Configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static void Release() { __asm__ volatile("tilerelease" : : : "memory"); }
  template <int tile>
  static inline __attribute__((always_inline)) void Load(const std::byte* base, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                     :
                     : "i"(tile), "r"(base), "r"(stride)
                     : "memory");
  }
  template <int tile>
  static inline __attribute__((always_inline)) void Store(std::byte* base, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                     :
                     : "i"(tile), "r"(base), "r"(stride)
                     : "memory");
  }
  template <int tile>
  static inline __attribute__((always_inline)) void Zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // Operands in AT&T order: unsigned weights, signed inputs, sums.
  template <int c, int a, int b>
  static inline __attribute__((always_inline)) void DotSU() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};

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
