#include "services/expert/kernels/kernel_table.h"

namespace banyan::expert {

std::vector<const FfnKernels*> AvailableKernels(const CpuFeatures& features) {
  std::vector<const FfnKernels*> out = {&kScalarKernels};
#if defined(__x86_64__)
  if (features.avx2) out.push_back(&kAvx2Kernels);
  if (features.avx512) out.push_back(&kAvx512Kernels);
#else
  (void)features;
#endif
  return out;
}

KernelChoice ChooseKernels(std::string_view tier, const CpuFeatures& features) {
  const std::vector<const FfnKernels*> available = AvailableKernels(features);
  if (tier == "auto") return {available.back(), ""};
  std::string names;
  for (const FfnKernels* kernels : available) {
    if (tier == kernels->name) return {kernels, ""};
    names += names.empty() ? "" : ", ";
    names += kernels->name;
  }
  const std::string given(tier);
  if (tier == "avx2" || tier == "avx512") {
    const std::string needs = tier == "avx2"
                                  ? "AVX2 and FMA"
                                  : "AVX-512 F, BW, DQ and VL, enabled by the operating system";
    return {nullptr, "cpu tier '" + given + "': this CPU lacks " + needs + "; it has " + names};
  }
  return {nullptr, "cpu tier '" + given + "': expected auto, scalar, avx2 or avx512"};
}

}  // namespace banyan::expert
