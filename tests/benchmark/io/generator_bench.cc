// Speed of the generator of dummy weights: GB/s of one core in a buffer that fits its cache, for
// each instruction set; then all cores into fresh memory on huge pages, as a load does it.
//   generator_bench [NUM_THREADS]
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

#include "common/io/generated_tensor.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"

namespace banyan {
namespace {

constexpr int kRounds = 7;  // the fastest counts: the others shared the machine
constexpr float kDeviation = 0.02f;

template <class Body>
double BestSeconds(Body body) {
  double best = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

void OneCore() {
  constexpr struct {
    GeneratorTier tier;
    const char* name;
  } kTiers[] = {{GeneratorTier::kPortable, "portable"},
                {GeneratorTier::kAvx2, "avx2"},
                {GeneratorTier::kAvx512, "avx512"}};
  constexpr int kTimes = 64;
  std::vector<std::byte> buffer(size_t{1} << 19);
  for (const auto& [tier, name] : kTiers) {
    if (!HasGeneratorTier(tier)) continue;
    const double seconds = BestSeconds([&] {
      for (int i = 0; i < kTimes; ++i) GenerateBF16(tier, 1, 0, kDeviation, 0, buffer);
    });
    std::printf("bf16, %-8s: %.2f GB/s a core, in cache\n", name,
                static_cast<double>(buffer.size()) * kTimes / seconds / 1e9);
  }
}

// The time of making the pages is in it.
int AllCores(int num_threads) {
  constexpr size_t kPart = size_t{1} << 21;
  const size_t parts = size_t{128} * static_cast<size_t>(std::min(num_threads, 32));
  WorkerPool pool({.num_threads = num_threads});
  const auto fresh = [&](auto fill) {
    return BestSeconds([&] {
      void* const memory = ::mmap(nullptr, parts * kPart, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      (void)::madvise(memory, parts * kPart, MADV_HUGEPAGE);
      pool.ParallelFor(static_cast<int64_t>(parts), [&](int64_t i, int) {
        fill(i, std::span(static_cast<std::byte*>(memory) + static_cast<size_t>(i) * kPart, kPart));
      });
      (void)::munmap(memory, parts * kPart);
    });
  };
  const double bytes = static_cast<double>(parts * kPart);
  const double zeros = fresh([](int64_t, std::span<std::byte> part) {
    std::fill(part.begin(), part.end(), std::byte{1});
  });
  const double weights = fresh([&](int64_t i, std::span<std::byte> part) {
    GenerateBF16(1, 0, kDeviation, i * static_cast<int64_t>(kPart / 2), part);
  });
  std::printf("%d threads, fresh memory: bf16 %.2f GB/s, %.2f a core; bytes of one value %.2f\n",
              num_threads, bytes / weights / 1e9, bytes / weights / 1e9 / num_threads,
              bytes / zeros / 1e9);
  return 0;
}

}  // namespace
}  // namespace banyan

int main(int argc, char** argv) {
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : banyan::UsableCpuCount();
  if (num_threads < 1) {
    std::fprintf(stderr, "usage: %s [NUM_THREADS], at least 1\n", argv[0]);
    return 2;
  }
  banyan::OneCore();
  return banyan::AllCores(num_threads);
}
