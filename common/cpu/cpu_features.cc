#include "common/cpu/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace banyan {
#if defined(__x86_64__)
namespace {

// XCR0: bit 1 SSE, 2 AVX (upper halves), 5 mask registers, 6 upper halves of zmm0-15, 7 zmm16-31,
// 17 tile configuration, 18 tile data.
constexpr uint64_t kYmmState = 0x06;
constexpr uint64_t kZmmState = 0xe6;
constexpr uint64_t kTileState = uint64_t{3} << 17;

uint64_t ReadXcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux gives the 8 KiB of tile data only to processes that ask
// (arch/x86/include/uapi/asm/prctl.h).
bool AskForTiles() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace

CpuFeatures ReadCpuFeatures() {
  CpuFeatures features;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return features;
  const bool osxsave = (ecx >> 27) & 1u;
  const bool avx = (ecx >> 28) & 1u;
  const bool fma = (ecx >> 12) & 1u;
  const bool f16c = (ecx >> 29) & 1u;
  if (!osxsave || !avx || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return features;
  const bool avx2 = (ebx >> 5) & 1u;
  const bool avx512f = (ebx >> 16) & 1u;
  const bool avx512dq = (ebx >> 17) & 1u;
  const bool avx512bw = (ebx >> 30) & 1u;
  const bool avx512vl = (ebx >> 31) & 1u;
  const bool avx512_vnni = (ecx >> 11) & 1u;
  const bool amx_bf16 = (edx >> 22) & 1u;
  const bool amx_tile = (edx >> 24) & 1u;
  const bool amx_int8 = (edx >> 25) & 1u;
  const unsigned max_subleaf = eax;
  const uint64_t xcr0 = ReadXcr0();
  features.avx2 = avx2 && fma && f16c && (xcr0 & kYmmState) == kYmmState;
  features.avx512 = features.avx2 && avx512f && avx512dq && avx512bw && avx512vl &&
                    (xcr0 & kZmmState) == kZmmState;
  if (!features.avx512) return features;
  features.avx512_vnni = avx512_vnni;
  if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    features.avx512_bf16 = (eax >> 5) & 1u;
  }
  const bool tiles = amx_tile && (xcr0 & kTileState) == kTileState && AskForTiles();
  features.amx_int8 = tiles && amx_int8 && features.avx512_vnni;
  features.amx_bf16 = tiles && amx_bf16 && features.avx512_bf16;
  return features;
}
#else
CpuFeatures ReadCpuFeatures() { return {}; }
#endif

}  // namespace banyan
