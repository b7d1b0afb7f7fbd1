#include "tests/benchmark/expert/int_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace banyan::expert {
namespace {

#if defined(__x86_64__)
// 64 multiply-adds an instruction, 16 independent chains.
__attribute__((target("avx512f,avx512vnni"))) double RunVnni(int64_t steps) {
  __m512i sums[16];
  for (__m512i& sum : sums) sum = _mm512_set1_epi32(1);
  __m512i a = _mm512_set1_epi8(3);
  __m512i b = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < steps; ++i) {
    __asm__ volatile("" : "+v"(a), "+v"(b));
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
    for (__m512i& sum : sums) __asm__ volatile("" : "+v"(sum));
  }
  for (__m512i& sum : sums) __asm__ volatile("" : : "v"(sum));
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
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const int64_t pieces = int64_t{16} * pool.num_threads();
    const Clock::time_point start = Clock::now();
    pool.ParallelFor(pieces, [&](int64_t, int) { run(steps); });
    const std::chrono::duration<double> seconds = Clock::now() - start;
    best = std::max(best, run(1) * static_cast<double>(steps * pieces) / seconds.count());
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
