#include "tests/fakes/emulated_linear.h"

#if defined(__x86_64__)
#include "common/cpu/cpu_features.h"
#include "tests/fakes/emulated_tiled_linear.h"
#endif

namespace banyan::test {

const trunk::cpu::KernelTable* EmulatedAmxKernels() {
#if defined(__x86_64__)
  static const trunk::cpu::KernelTable kernels =
      trunk::cpu::WithTiledLinear("amx_emulated", EmulatedLinearBf16, EmulatedLinearI8);
  return ReadCpuFeatures().avx512_bf16 ? &kernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace banyan::test
