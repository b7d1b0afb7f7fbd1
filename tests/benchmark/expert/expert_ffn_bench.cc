// Expert calls of the real geometry (hidden 2048, width 512, 10 of 512 experts) on this machine's
// threads, beside the memory bandwidth that the same threads read in the same run.
//
//   bytes_per_second  bytes of the distinct experts a call touches, over its time
//   share             of the read bandwidth measured at start (best of one and four streams)
//   expert_ffn_bench [--threads=N] [--tier=NAME] [--huge_pages] [--benchmark_...]
//
// Ids are uniform without repetition, fresh every call. Pages are 4 KiB, as those of mapped files,
// unless --huge_pages is given. With --threads=1 times are CPU time of that thread.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "services/expert/kernels/kernel_table.h"
#include "services/expert/runtime/cpu_executor.h"

namespace banyan::expert {
namespace {

constexpr int32_t kHiddenSize = 2048;
constexpr int32_t kWidth = 512;
constexpr int32_t kTopK = 10;
constexpr int64_t kMatrixBytes = int64_t{kHiddenSize} * kWidth * 2;

struct Settings {
  int num_threads = UsableCpuCount();
  std::string tier = "auto";
  bool huge_pages = false;
};
Settings settings;

// One layer of bf16 experts: 512, or what half of the free memory holds.
class Pool {
 public:
  Pool() {
    const int64_t free_bytes = int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    num_experts_ =
        static_cast<int32_t>(std::clamp<int64_t>(free_bytes / 2 / (3 * kMatrixBytes), kTopK, 512));
    bytes_ = static_cast<size_t>(num_experts_ * 3 * kMatrixBytes);
    void* const base =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    madvise(base, bytes_, settings.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    data_ = static_cast<std::byte*>(base);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    std::vector<BF16> values((1 << 20) + 1);
    for (BF16& value : values) value = ToBF16(normal(random));
    for (size_t at = 0; at < bytes_; at += values.size() * 2) {
      std::memcpy(data_ + at, values.data(), std::min(values.size() * 2, bytes_ - at));
    }
    table_.geometry = {.num_layers = 1,
                       .hidden_size = kHiddenSize,
                       .num_experts = num_experts_,
                       .moe_intermediate_size = kWidth,
                       .max_top_k = kTopK,
                       .first_expert = 0,
                       .num_shard_experts = num_experts_,
                       .first_width = 0,
                       .num_shard_width = kWidth,
                       .max_rows = 4096};
    table_.layers.resize(1);
    for (int32_t e = 0; e < num_experts_; ++e) {
      const std::byte* p = data_ + e * 3 * kMatrixBytes;
      table_.layers[0].push_back(
          {.gate_proj = {p, kHiddenSize * 2, WeightType::kBF16},
           .up_proj = {p + kMatrixBytes, kHiddenSize * 2, WeightType::kBF16},
           .down_proj = {p + 2 * kMatrixBytes, kWidth * 2, WeightType::kBF16}});
    }
  }
  ~Pool() { munmap(data_, bytes_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  const ExpertTable& table() const { return table_; }
  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  int32_t num_experts_;
  std::byte* data_;
  size_t bytes_;
  ExpertTable table_;
};

Pool& SharedPool() {
  static Pool pool;
  return pool;
}

WorkerPool& SharedThreads() {
  static WorkerPool threads({.num_threads = settings.num_threads, .spin = absl::Milliseconds(2)});
  return threads;
}

const FfnKernels& Kernels() {
  const KernelChoice choice = ChooseKernels(settings.tier, ReadCpuFeatures());
  if (choice.kernels == nullptr) {
    std::fprintf(stderr, "%s\n", choice.error.c_str());
    std::exit(1);
  }
  return *choice.kernels;
}

// Seconds since any fixed moment. With one thread its own CPU time, so that a figure taken on a
// busy machine still means something.
double Now() {
  timespec now;
  clock_gettime(settings.num_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Sums `bytes` as S streams that run side by side, each with prefetch 1 KiB ahead.
template <int S>
uint64_t ReadAll(const std::byte* data, int64_t bytes) {
  const int64_t stream_bytes = bytes / S / 64 * 64;
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < stream_bytes; i += 64) {
    for (int s = 0; s < S; ++s) {
      const std::byte* p = data + s * stream_bytes + i;
      __builtin_prefetch(p + 1024);
      uint64_t line[8];
      std::memcpy(line, p, sizeof(line));
      for (int j = 0; j < 8; ++j) sums[j] += line[j];
    }
  }
  return std::accumulate(sums, sums + 8, uint64_t{0});
}

// Bytes per second of all threads over the whole pool, median of 5 passes.
template <int S>
double MeasureRead() {
  constexpr int64_t kPiece = 4 << 20;
  const Pool& pool = SharedPool();
  const auto pieces = static_cast<int64_t>(pool.bytes()) / kPiece;
  std::vector<double> rates;
  for (int pass = 0; pass < 6; ++pass) {
    const double start = Now();
    SharedThreads().ParallelFor(pieces, [&](int64_t i, int) {
      benchmark::DoNotOptimize(ReadAll<S>(pool.data() + i * kPiece, kPiece));
    });
    const double seconds = Now() - start;
    if (pass > 0) rates.push_back(static_cast<double>(pieces * kPiece) / seconds);
  }
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

double ReadBandwidth() {
  static const double best = [] {
    const double one = MeasureRead<1>();
    const double four = MeasureRead<4>();
    std::printf("read bandwidth, %d threads: one stream %.1f GB/s, four streams %.1f GB/s\n",
                settings.num_threads, one / 1e9, four / 1e9);
    return std::max(one, four);
  }();
  return best;
}

struct AlignedBytes {
  explicit AlignedBytes(size_t bytes)
      : data(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {
    std::memset(data, 0, bytes);
  }
  ~AlignedBytes() { std::free(data); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  std::byte* data;
};

// A call of fresh random experts; bf16 in and out.
class RandomCall {
 public:
  RandomCall(int32_t num_rows, int32_t num_experts)
      : ids_(static_cast<size_t>(num_rows * kTopK)),
        weights_(static_cast<size_t>(num_rows * kTopK), 0.1f),
        experts_(static_cast<size_t>(num_experts)),
        activations_(static_cast<size_t>(num_rows) * kHiddenSize * 2),
        out_(static_cast<size_t>(num_rows) * kHiddenSize * 2) {
    std::iota(experts_.begin(), experts_.end(), uint16_t{0});
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < int64_t{num_rows} * kHiddenSize; ++i) {
      const BF16 value = ToBF16(normal(random_));
      std::memcpy(activations_.data + i * 2, &value, 2);
    }
    call_ = {.layer = 0,
             .num_rows = num_rows,
             .top_k = kTopK,
             .expert_ids = reinterpret_cast<const std::byte*>(ids_.data()),
             .weights = reinterpret_cast<const std::byte*>(weights_.data()),
             .activations = activations_.data,
             .activation_type = ActivationType::kBF16,
             .out = out_.data,
             .reply_type = ActivationType::kBF16};
  }

  const ExpertCall& Next() {
    for (size_t at = 0; at < ids_.size(); at += kTopK) {
      for (int k = 0; k < kTopK; ++k) {
        const auto first = static_cast<size_t>(k);
        std::uniform_int_distribution<size_t> pick(first, experts_.size() - 1);
        std::swap(experts_[first], experts_[pick(random_)]);
        ids_[at + first] = experts_[first];
      }
    }
    return call_;
  }

 private:
  std::mt19937 random_{7};
  std::vector<uint16_t> ids_;
  std::vector<float> weights_;
  std::vector<uint16_t> experts_;
  AlignedBytes activations_;
  AlignedBytes out_;
  ExpertCall call_;
};

void BM_Call(benchmark::State& state) {
  const Pool& pool = SharedPool();
  const double bandwidth = ReadBandwidth();
  CpuExecutor executor({}, pool.table(), Kernels(), SharedThreads());
  const auto num_rows = static_cast<int32_t>(state.range(0));
  RandomCall random(num_rows, pool.table().geometry.num_experts);
  CHECK(executor.Run(random.Next()).ok());
  double bytes = 0;
  double seconds = 0;
  double pairs = 0;
  for (auto _ : state) {
    const ExpertCall& call = random.Next();
    const double start = Now();
    CHECK(executor.Run(call).ok());
    const double elapsed = Now() - start;
    state.SetIterationTime(elapsed);
    seconds += elapsed;
    bytes += static_cast<double>(executor.last_call().weight_bytes);
    pairs += static_cast<double>(executor.last_call().num_pairs);
  }
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
  state.counters["share"] = bytes / seconds / bandwidth;
  state.counters["GFLOPs"] = pairs * 6 * kHiddenSize * kWidth / seconds / 1e9;
  state.SetLabel(Kernels().name);
}
BENCHMARK(BM_Call)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond)
    ->Arg(1)
    ->Arg(4)
    ->Arg(16)
    ->Arg(64)
    ->Arg(512)
    ->Arg(2048);

// The same call with kernels that do nothing: checks, grouping, conversions, both loops.
void BM_Overhead(benchmark::State& state) {
  const Pool& pool = SharedPool();
  FfnKernels kernels = Kernels();
  kernels.gate_up = [](const GateUpArgs&) {};
  kernels.down = [](const DownArgs&) {};
  CpuExecutor executor({}, pool.table(), kernels, SharedThreads());
  RandomCall random(static_cast<int32_t>(state.range(0)), pool.table().geometry.num_experts);
  const ExpertCall& call = random.Next();
  for (auto _ : state) CHECK(executor.Run(call).ok());
}
BENCHMARK(BM_Overhead)->Unit(benchmark::kMicrosecond)->UseRealTime()->Arg(1)->Arg(64);

}  // namespace

int Main(int argc, char** argv) {
  std::vector<char*> rest = {argv[0]};
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg.rfind("--threads=", 0) == 0) {
      settings.num_threads = std::max(1, std::atoi(argv[i] + 10));
    } else if (arg.rfind("--tier=", 0) == 0) {
      settings.tier = arg.substr(7);
    } else if (arg == "--huge_pages") {
      settings.huge_pages = true;
    } else {
      rest.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace banyan::expert

int main(int argc, char** argv) { return banyan::expert::Main(argc, argv); }
