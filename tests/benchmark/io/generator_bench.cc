// Speed of the generator of dummy weights: GB/s of one core in a buffer that fits its cache, bf16
// for each instruction set and the quantised pool formats; then all cores into fresh memory on huge
// pages, as a load does it, in bf16 and in the quantised pool formats.
//   generator_bench [NUM_THREADS]
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/io/generated_tensor.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/pool/generated_matrix.h"

namespace banyan {
namespace {

constexpr int kRounds = 7;  // the fastest counts: the others shared the machine
constexpr float kDeviation = 0.02f;
constexpr int64_t kHiddenSize = 2048;
constexpr int64_t kWidth = 512;

double Now(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

template <class Body>
double BestSeconds(clockid_t clock, Body body) {
  double best = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const double start = Now(clock);
    body();
    best = std::min(best, Now(clock) - start);
  }
  return best;
}

// CPU time of this thread, so that a figure taken on a busy machine still means something.
void OneCore() {
  constexpr struct {
    GeneratorTier tier;
    const char* name;
  } kTiers[] = {{GeneratorTier::kPortable, "bf16 portable"},
                {GeneratorTier::kAvx2, "bf16 avx2"},
                {GeneratorTier::kAvx512, "bf16 avx512"}};
  constexpr int kTimes = 64;
  const auto print = [&](std::string_view name, int64_t bytes, auto make) {
    const double seconds = BestSeconds(CLOCK_THREAD_CPUTIME_ID, [&] {
      for (int i = 0; i < kTimes; ++i) make();
    });
    std::printf("in cache, %-13s %.2f GB/s a core\n", std::string(name).c_str(),
                static_cast<double>(bytes) * kTimes / seconds / 1e9);
  };
  std::vector<std::byte> buffer(size_t{1} << 19);
  for (const auto& [tier, name] : kTiers) {
    if (!HasGeneratorTier(tier)) continue;
    print(name, static_cast<int64_t>(buffer.size()),
          [&] { GenerateBF16(tier, 1, 0, kDeviation, 0, buffer); });
  }
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kNF4, PoolFormat::kInt4}) {
    constexpr MatrixSlice kSlice = {kHiddenSize, 0, kWidth / 4, 0, kHiddenSize};
    print(PoolFormatName(format), PackedMatrixBytes(format, kSlice.num_outputs, kSlice.num_inputs),
          [&] { GeneratePackedMatrix(format, 1, kDeviation, kSlice, buffer.data()); });
  }
}

// The time of making the pages is in it.
void AllCores(int num_threads) {
  constexpr size_t kPart = size_t{1} << 21;
  const size_t parts = size_t{128} * static_cast<size_t>(std::min(num_threads, 32));
  WorkerPool pool({.num_threads = num_threads});
  const auto fresh = [&](auto fill) {
    return BestSeconds(CLOCK_MONOTONIC, [&] {
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
  std::printf("%d threads, fresh memory: one value %.2f GB/s\n", num_threads, bytes / zeros / 1e9);
  const auto print = [&](std::string_view name, double done, double seconds) {
    std::printf("  %-4s %.2f GB/s, %.2f a core\n", std::string(name).c_str(), done / seconds / 1e9,
                done / seconds / 1e9 / num_threads);
  };
  print("bf16", bytes, fresh([&](int64_t i, std::span<std::byte> part) {
          GenerateBF16(1, 0, kDeviation, i * static_cast<int64_t>(kPart / 2), part);
        }));
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kNF4, PoolFormat::kInt4}) {
    const int64_t matrix = PackedMatrixBytes(format, kWidth, kHiddenSize);
    const int64_t num_matrices = static_cast<int64_t>(kPart) / matrix;
    const double seconds = fresh([&](int64_t i, std::span<std::byte> part) {
      for (int64_t m = 0; m < num_matrices; ++m) {
        GeneratePackedMatrix(format, static_cast<uint64_t>(i * num_matrices + m), kDeviation,
                             {kHiddenSize, 0, kWidth, 0, kHiddenSize}, part.data() + m * matrix);
      }
    });
    print(PoolFormatName(format),
          static_cast<double>(static_cast<int64_t>(parts) * num_matrices * matrix), seconds);
  }
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
  banyan::AllCores(num_threads);
  return 0;
}
