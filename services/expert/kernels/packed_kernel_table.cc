#include "services/expert/kernels/packed_kernel_table.h"

#include <cstring>
#include <iterator>
#include <span>

namespace banyan::expert {
namespace {

// Slowest first.
constexpr const char* kTiers[] = {"scalar", "avx2", "avx512", "avx512_vnni", "amx"};

// Position in kTiers, -1 for another name.
int RankOf(const char* tier) {
  for (size_t i = 0; i < std::size(kTiers); ++i) {
    if (std::strcmp(tier, kTiers[i]) == 0) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

std::vector<const PackedKernels*> AvailablePackedKernels(const CpuFeatures& features) {
  std::vector<const PackedKernels*> out;
  const auto add = [&](bool allowed, std::span<const PackedKernels> kernels) {
    if (!allowed) return;
    for (const PackedKernels& one : kernels) out.push_back(&one);
  };
  add(true, kPackedIntScalar);
  add(true, kPackedF32Scalar);
#if defined(__x86_64__)
  add(features.avx2, kPackedIntAvx2);
  add(features.avx2, kPackedF32Avx2);
  add(features.avx512, kPackedF32Avx512);
  add(features.avx512_vnni, kPackedIntVnni);
  add(features.avx512_bf16, kPackedBF16Avx512);
  add(features.amx_int8, kPackedIntAmx);

#else
  (void)features;
#endif
  return out;
}

const PackedKernels* FindPackedKernels(PoolFormat format, Precision precision, const char* tier,
                                       const CpuFeatures& features) {
  const int limit = RankOf(tier);
  const PackedKernels* best = nullptr;
  for (const PackedKernels* kernels : AvailablePackedKernels(features)) {
    const int rank = RankOf(kernels->tier);
    if (kernels->format != format || kernels->precision != precision || rank > limit) continue;
    if (best == nullptr || rank >= RankOf(best->tier)) best = kernels;
  }
  return best;
}

}  // namespace banyan::expert
