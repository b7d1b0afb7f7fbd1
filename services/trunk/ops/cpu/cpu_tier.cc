#include "services/trunk/ops/cpu/cpu_tier.h"

#include "common/base/strings.h"

namespace banyan::trunk::cpu {
namespace {

bool Always() { return true; }

#if defined(__x86_64__)
// GCC's and clang's own checks include the operating system's support (XGETBV).
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && HasAvx2();
}
#endif

struct Tier {
  const KernelTable* kernels;
  bool (*supported)();
};

// Best first.
const Tier kTiers[] = {
#if defined(__x86_64__)
    {&kAvx512Kernels, HasAvx512},
    {&kAvx2Kernels, HasAvx2},
#endif
    {&kScalarKernels, Always},
};

}  // namespace

absl::StatusOr<const KernelTable*> FindKernels(std::string_view name) {
  for (const Tier& tier : kTiers) {
    if (name == "auto" && tier.supported()) return tier.kernels;
    if (name != tier.kernels->name) continue;
    if (tier.supported()) return tier.kernels;
    return StatusF(absl::StatusCode::kUnimplemented, "cpu tier {}: this CPU does not have it",
                   name);
  }
  return InvalidArgumentF("cpu tier '{}': expected auto, scalar, avx2 or avx512", Printable(name));
}

std::vector<std::string> AvailableTiers() {
  std::vector<std::string> names;
  for (const Tier& tier : kTiers) {
    if (tier.supported()) names.emplace_back(tier.kernels->name);
  }
  return names;
}

}  // namespace banyan::trunk::cpu
