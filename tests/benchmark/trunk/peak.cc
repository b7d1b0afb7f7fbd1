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

// Operations of one lane: kRounds * kChains * 2.
__attribute__((target("avx512f"))) float RunAvx512() {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512 x = _mm512_set1_ps(0.999f);
  const __m512 y = _mm512_set1_ps(0.001f);
  for (int64_t i = 0; i < kRounds; ++i) {
    for (__m512& a : acc) a = _mm512_fmadd_ps(a, x, y);
    benchmark::ClobberMemory();
  }
  float sum = 0;
  for (const __m512& a : acc) {
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, a);
    sum += lanes[0];
  }
  return sum;
}

__attribute__((target("avx2,fma"))) float RunAvx2() {
  __m256 acc[kChains];
  for (__m256& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 x = _mm256_set1_ps(0.999f);
  const __m256 y = _mm256_set1_ps(0.001f);
  for (int64_t i = 0; i < kRounds; ++i) {
    for (__m256& a : acc) a = _mm256_fmadd_ps(a, x, y);
    benchmark::ClobberMemory();
  }
  float sum = 0;
  for (const __m256& a : acc) sum += _mm256_cvtss_f32(a);
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
