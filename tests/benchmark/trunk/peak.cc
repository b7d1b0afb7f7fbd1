#include "tests/benchmark/trunk/peak.h"

#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace banyan::trunk {
namespace {

template <typename Body>
double BestSeconds(const Body& body) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

constexpr int64_t kRounds = 1'000'000;
constexpr int kChains = 12;  // enough to hide the latency of a multiply-add

// kRounds rounds of kChains multiply-adds of a vector. Variables, not an array: that would be
// stored in every round.
__attribute__((target("avx512f"))) float RunAvx512() {
  const __m512 x = _mm512_set1_ps(0.999f);
  const __m512 y = _mm512_set1_ps(0.001f);
  __m512 a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  for (int64_t round = 0; round < kRounds; ++round) {
    a = _mm512_fmadd_ps(a, x, y);
    b = _mm512_fmadd_ps(b, x, y);
    c = _mm512_fmadd_ps(c, x, y);
    d = _mm512_fmadd_ps(d, x, y);
    e = _mm512_fmadd_ps(e, x, y);
    f = _mm512_fmadd_ps(f, x, y);
    g = _mm512_fmadd_ps(g, x, y);
    h = _mm512_fmadd_ps(h, x, y);
    i = _mm512_fmadd_ps(i, x, y);
    j = _mm512_fmadd_ps(j, x, y);
    k = _mm512_fmadd_ps(k, x, y);
    l = _mm512_fmadd_ps(l, x, y);
    __asm__ volatile(""
                     : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h),
                       "+v"(i), "+v"(j), "+v"(k), "+v"(l));
  }
  float sum = 0;
  for (const __m512 chain : {a, b, c, d, e, f, g, h, i, j, k, l}) sum += _mm512_cvtss_f32(chain);
  return sum;
}

__attribute__((target("avx2,fma"))) float RunAvx2() {
  const __m256 x = _mm256_set1_ps(0.999f);
  const __m256 y = _mm256_set1_ps(0.001f);
  __m256 a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  for (int64_t round = 0; round < kRounds; ++round) {
    a = _mm256_fmadd_ps(a, x, y);
    b = _mm256_fmadd_ps(b, x, y);
    c = _mm256_fmadd_ps(c, x, y);
    d = _mm256_fmadd_ps(d, x, y);
    e = _mm256_fmadd_ps(e, x, y);
    f = _mm256_fmadd_ps(f, x, y);
    g = _mm256_fmadd_ps(g, x, y);
    h = _mm256_fmadd_ps(h, x, y);
    i = _mm256_fmadd_ps(i, x, y);
    j = _mm256_fmadd_ps(j, x, y);
    k = _mm256_fmadd_ps(k, x, y);
    l = _mm256_fmadd_ps(l, x, y);
    __asm__ volatile(""
                     : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f), "+x"(g), "+x"(h),
                       "+x"(i), "+x"(j), "+x"(k), "+x"(l));
  }
  float sum = 0;
  for (const __m256 chain : {a, b, c, d, e, f, g, h, i, j, k, l}) sum += _mm256_cvtss_f32(chain);
  return sum;
}

}  // namespace

double MeasureReadBandwidth(WorkerPool* pool) {
  constexpr int64_t kWords = (int64_t{256} << 20) / 8;
  constexpr int64_t kTiles = 1024;
  std::vector<uint64_t> data(kWords, 1);
  std::vector<uint64_t> sums(kTiles);
  const double seconds = BestSeconds([&] {
    pool->ParallelFor(kTiles, [&](int64_t tile, int) {
      uint64_t sum = 0;
      const uint64_t* p = data.data() + tile * (kWords / kTiles);
      for (int64_t i = 0; i < kWords / kTiles; ++i) sum += p[i];
      sums[static_cast<size_t>(tile)] = sum;
    });
  });
  benchmark::DoNotOptimize(sums.data());
  return static_cast<double>(kWords) * 8 / seconds;
}

double MeasurePeakFlops(WorkerPool* pool) {
  const bool wide = __builtin_cpu_supports("avx512f");
  if (!wide && !__builtin_cpu_supports("fma")) return 0;
  const int64_t tiles = 4 * pool->num_threads();
  const double seconds = BestSeconds([&] {
    pool->ParallelFor(
        tiles, [&](int64_t, int) { benchmark::DoNotOptimize(wide ? RunAvx512() : RunAvx2()); });
  });
  return static_cast<double>(tiles * kRounds) * kChains * 2 * (wide ? 16 : 8) / seconds;
}

}  // namespace banyan::trunk
