#include "services/trunk/ops/cpu/cpu_tier.h"

#include "common/base/strings.h"
#include "common/cpu/cpu_features.h"

namespace banyan::trunk::cpu {
namespace {

#if defined(__x86_64__)
// GCC's and clang's own checks include the operating system's support (XGETBV).
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && HasAvx2();
}
bool HasAmx() {
  const CpuFeatures features = ReadCpuFeatures();
  return features.amx_bf16 && features.amx_int8 && HasAvx512();
}

const KernelTable& AmxKernels() {
  static const KernelTable kernels = WithTiledLinear("amx", LinearBf16Amx, LinearI8Amx);
  return kernels;
}
#endif

struct Tier {
  const KernelTable* kernels;
  bool supported;
};

// Best first. Asks the CPU.
std::vector<Tier> Tiers() {
  std::vector<Tier> tiers;
#if defined(__x86_64__)
  tiers.push_back({&AmxKernels(), HasAmx()});
  tiers.push_back({&kAvx512Kernels, HasAvx512()});
  tiers.push_back({&kAvx2Kernels, HasAvx2()});
#endif
  tiers.push_back({&kScalarKernels, true});
  return tiers;
}

}  // namespace

#if defined(__x86_64__)
KernelTable WithTiledLinear(const char* name, void (*bf16)(const LinearTile&),
                            void (*codes)(const LinearTile&)) {
  KernelTable kernels = kAvx512Kernels;
  kernels.name = name;
  kernels.linear_bf16 = bf16;
  kernels.linear_i8 = codes;
  kernels.linear_arranges = true;
  kernels.linear_outputs = 32;
  return kernels;
}
#endif

absl::StatusOr<const KernelTable*> FindKernels(std::string_view name) {
  for (const Tier& tier : Tiers()) {
    if (name == "auto" && tier.supported) return tier.kernels;
    if (name != tier.kernels->name) continue;
    if (tier.supported) return tier.kernels;
    return StatusF(absl::StatusCode::kUnimplemented, "cpu tier {}: this CPU does not have it",
                   name);
  }
  return InvalidArgumentF("cpu tier '{}': expected auto, scalar, avx2, avx512 or amx",
                          Printable(name));
}

std::vector<std::string> AvailableTiers() {
  std::vector<std::string> names;
  for (const Tier& tier : Tiers()) {
    if (tier.supported) names.emplace_back(tier.kernels->name);
  }
  return names;
}

}  // namespace banyan::trunk::cpu
