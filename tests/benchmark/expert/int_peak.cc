#include "tests/benchmark/expert/int_peak.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <ctime>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace banyan::expert {
namespace {

#if defined(__x86_64__)
// 64 multiply-adds an instruction, 16 independent chains.
double RunVnni(int64_t steps) {
  for (int64_t i = 0; i < steps; ++i) {
    __asm__ volatile(
        "vpdpbusd %%zmm0, %%zmm0, %%zmm1\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm2\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm3\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm4\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm5\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm6\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm7\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm8\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm9\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm10\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm11\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm12\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm13\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm14\n\t"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm15\n\tvpdpbusd %%zmm0, %%zmm0, %%zmm16"
        :
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  }
  return static_cast<double>(steps) * 16 * 64;
}

// 16 rows x 16 outputs x 64 inputs an instruction, four accumulator tiles.
__attribute__((target("amx-tile,amx-int8"))) double RunAmx(int64_t steps) {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  for (int64_t i = 0; i < steps; ++i) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(steps) * 4 * 16 * 16 * 64;
}
#endif

double MacsPerSecond(WorkerPool& pool, double (*run)(int64_t steps), int64_t steps) {
  // One thread: its own CPU time, as in expert_bench.cc.
  const auto now = [&] {
    timespec time;
    clock_gettime(pool.num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  double best = 0;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const int64_t pieces = int64_t{16} * pool.num_threads();
    const double start = now();
    pool.ParallelFor(pieces, [&](int64_t, int) { run(steps); });
    best = std::max(best, run(1) * static_cast<double>(steps * pieces) / (now() - start));
  }
  return best;
}

}  // namespace

double MeasureIntPeak(WorkerPool& pool, const char* tier) {
#if defined(__x86_64__)
  if (std::strcmp(tier, "avx512_vnni") == 0) return MacsPerSecond(pool, RunVnni, 100'000);
  if (std::strcmp(tier, "amx") == 0) return MacsPerSecond(pool, RunAmx, 100'000);
#else
  (void)pool;
  (void)tier;
#endif
  return 0;
}

}  // namespace banyan::expert
