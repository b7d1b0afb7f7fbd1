// Chooses a kernel tier once, at start.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/cpu/cpu_features.h"
#include "services/expert/kernels/expert_ffn.h"

namespace banyan::expert {

struct KernelChoice {
  const FfnKernels* kernels = nullptr;  // nullptr: `error` says why
  std::string error;
};

// `tier`: auto (the fastest one `features` allows), scalar, avx2 or avx512.
KernelChoice ChooseKernels(std::string_view tier, const CpuFeatures& features);

// Every tier that `features` allows, slowest first.
std::vector<const FfnKernels*> AvailableKernels(const CpuFeatures& features);

}  // namespace banyan::expert
