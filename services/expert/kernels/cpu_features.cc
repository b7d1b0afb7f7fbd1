#include "services/expert/kernels/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace banyan::expert {
#if defined(__x86_64__)
namespace {

// XCR0: bit 1 SSE, 2 AVX (upper halves), 5 mask registers, 6 upper halves of zmm0-15, 7 zmm16-31.
constexpr uint64_t kYmmState = 0x06;
constexpr uint64_t kZmmState = 0xe6;

uint64_t ReadXcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

}  // namespace

CpuFeatures ReadCpuFeatures() {
  CpuFeatures features;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return features;
  const bool osxsave = (ecx >> 27) & 1u;
  const bool avx = (ecx >> 28) & 1u;
  const bool fma = (ecx >> 12) & 1u;
  if (!osxsave || !avx || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return features;
  const bool avx2 = (ebx >> 5) & 1u;
  const bool avx512f = (ebx >> 16) & 1u;
  const bool avx512dq = (ebx >> 17) & 1u;
  const bool avx512bw = (ebx >> 30) & 1u;
  const bool avx512vl = (ebx >> 31) & 1u;
  const uint64_t xcr0 = ReadXcr0();
  features.avx2 = avx2 && fma && (xcr0 & kYmmState) == kYmmState;
  features.avx512 = features.avx2 && avx512f && avx512dq && avx512bw && avx512vl &&
                    (xcr0 & kZmmState) == kZmmState;
  return features;
}
#else
CpuFeatures ReadCpuFeatures() { return {}; }
#endif

}  // namespace banyan::expert
