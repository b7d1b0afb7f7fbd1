// Expert calls in every pool format over the packed kernels: hidden 2048, width 512, 10 of 512
// experts, as many layers as --memory holds, so that weights come from memory. Needs no gRPC and no
// model: it can be carried to another machine.
//
//   expert_bench [--threads=N] [--memory=GiB] [--format=NAME,...] [--tier=NAME,...]
//                [--precision=exact|fast] [--rows=N,...] [--small_pages] [--one_expert]
//                [--min_pairs_by_expert=N] [--max_product_bytes=N] [--skew=X]
//                [--benchmark_...]
//
// Around each case the read bandwidth of the same threads over the same pages: four streams a
// thread with prefetch 1 KiB ahead, passes of a quarter of a GiB. A call is what the server's
// executor does (packed_executor.h), replies in f32. Ids are uniform without repetition, layer and
// ids fresh every call. --skew: ids of a router whose logits are standard normal numbers, one of
// each (row, expert) plus X times one of each expert: of 2,048 rows 1 gives the most popular expert
// about half. --one_expert: all ids have the weights of one, so that they come from the caches;
// what is left is computing.
//
// Columns:
//   Time      mean of the calls
//   bandwidth GB/s, measured just before
//   GBps      bytes of the distinct experts / time, median of the calls; best: of the best call
//   share     GBps of the median call / bandwidth; share_best: of the best call; x: 1 / share
//   prepare_ms, gate_up_ms, down_ms   of the executor's phases, medians
//   peak       multiply-adds / time of the median call / what the dot product does
//              from registers (kExact does two per weight and counts both)
// On a machine that others use as well the best calls say more than the median. With --threads=1
// times are CPU time of that thread.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/quant/bf16.h"
#include "common/quant/packed_matrix.h"
#include "services/expert/kernels/kernel_table.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"
#include "services/expert/runtime/packed_executor.h"
#include "tests/benchmark/expert/dot_peak.h"

namespace banyan::expert {
namespace {

constexpr int32_t kHiddenSize = 2048;
constexpr int32_t kWidth = 512;
constexpr int32_t kTopK = 10;
constexpr int32_t kNumExperts = 512;

struct Settings {
  int num_threads = UsableCpuCount();
  double memory_gib = 4;
  bool small_pages = false;
  bool one_expert = false;
  float skew = 0;
  GroupedExecutor::Options executor;
  std::vector<std::string> formats = {"bf16", "int8", "nf4", "int4"};
  std::vector<std::string> tiers;
  std::vector<std::string> precisions = {"exact", "fast"};
  std::vector<std::string> rows = {"1", "4", "16", "64", "512", "2048"};
};
Settings settings;

// Seconds since any fixed moment. With one thread its own CPU time, so that a figure taken on a
// busy machine still means something.
double Now() {
  timespec now;
  clock_gettime(settings.num_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

WorkerPool& SharedThreads() {
  static WorkerPool threads({.num_threads = settings.num_threads, .spin = absl::Milliseconds(2)});
  return threads;
}

// Layers of experts in one format, filled from one packed matrix of each shape.
class Pool {
 public:
  explicit Pool(PoolFormat format)
      : format_(format),
        matrix_bytes_((PackedMatrixBytes(format, kWidth, kHiddenSize) + 63) / 64 * 64) {
    const double budget = settings.memory_gib * static_cast<double>(1 << 30);
    const int64_t layer = int64_t{kNumExperts} * 3 * matrix_bytes_;
    num_layers_ = std::max<int64_t>(1, static_cast<int64_t>(budget) / layer);
    bytes_ = static_cast<size_t>(num_layers_ * layer);
    void* const base =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    madvise(base, bytes_, settings.small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(base);
    Fill();
  }
  ~Pool() { munmap(data_, bytes_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  PoolFormat format() const { return format_; }
  int64_t num_layers() const { return num_layers_; }
  int64_t expert_bytes() const { return 3 * matrix_bytes_; }
  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  PackedExpert Expert(int64_t layer, int32_t expert) const {
    const std::byte* at = data_ + (layer * kNumExperts + expert) * expert_bytes();
    return {at, at + matrix_bytes_, at + 2 * matrix_bytes_};
  }

 private:
  void Fill() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    std::vector<float> w(size_t{kWidth} * kHiddenSize);
    for (float& value : w) value = normal(random);
    std::vector<std::byte> wide(static_cast<size_t>(matrix_bytes_));
    std::vector<std::byte> tall(static_cast<size_t>(matrix_bytes_));
    PackMatrix(format_, {w.data(), kWidth, kHiddenSize, kHiddenSize}, wide.data());
    PackMatrix(format_, {w.data(), kHiddenSize, kWidth, kWidth}, tall.data());
    SharedThreads().ParallelFor(num_layers_ * kNumExperts, [&](int64_t i, int) {
      std::byte* at = data_ + i * expert_bytes();
      std::memcpy(at, wide.data(), wide.size());
      std::memcpy(at + matrix_bytes_, wide.data(), wide.size());
      std::memcpy(at + 2 * matrix_bytes_, tall.data(), tall.size());
    });
  }

  const PoolFormat format_;
  const int64_t matrix_bytes_;
  int64_t num_layers_ = 0;
  size_t bytes_ = 0;
  std::byte* data_ = nullptr;
};

// The pool of `format`; the one of another format is freed.
const Pool& PoolOf(PoolFormat format) {
  static std::unique_ptr<Pool> pool;
  if (pool == nullptr || pool->format() != format) {
    pool.reset();
    pool = std::make_unique<Pool>(format);
  }
  return *pool;
}

uint64_t ReadPiece(const std::byte* data, int64_t bytes) {
  constexpr int kStreams = 4;
  const int64_t stream_bytes = bytes / kStreams / 64 * 64;
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < stream_bytes; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* p = data + s * stream_bytes + i;
      __builtin_prefetch(p + 1024);
      uint64_t line[8];
      std::memcpy(line, p, sizeof(line));
      for (int j = 0; j < 8; ++j) sums[j] += line[j];
    }
  }
  return std::accumulate(sums, sums + 8, uint64_t{0});
}

// Bytes per second of passes over a quarter of a GiB each, added to `rates`.
void MeasureBandwidth(const Pool& pool, std::vector<double>* rates) {
  constexpr int64_t kPiece = 1 << 20;
  constexpr int64_t kPassPieces = 256;
  const auto passes =
      std::max<int64_t>(1, static_cast<int64_t>(pool.bytes()) / (kPassPieces * kPiece));
  static int64_t pass = 0;
  for (int i = 0; i < 12; ++i) {
    const std::byte* const at = pool.data() + pass++ % passes * kPassPieces * kPiece;
    const double start = Now();
    SharedThreads().ParallelFor(kPassPieces, [&](int64_t piece, int) {
      benchmark::DoNotOptimize(ReadPiece(at + piece * kPiece, kPiece));
    });
    rates->push_back(static_cast<double>(kPassPieces * kPiece) / (Now() - start));
  }
}

struct AlignedBytes {
  explicit AlignedBytes(int64_t bytes)
      : data(static_cast<std::byte*>(
            std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)))) {
    CHECK(data != nullptr);
    std::memset(data, 0, static_cast<size_t>(bytes));
  }
  ~AlignedBytes() { std::free(data); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  std::byte* data;
};

// Calls of one row count with one kernel set.
class Runner {
 public:
  Runner(const PackedKernels& kernels, const Pool& pool, int32_t num_rows)
      : num_rows_(num_rows),
        num_layers_(pool.num_layers()),
        type_(kernels.precision == Precision::kExact ? ActivationType::kF32
                                                     : ActivationType::kBF16),
        table_(TableOf(pool, num_rows)),
        executor_(settings.executor, table_, PairOf(kernels),
                  *ChooseKernels("auto", ReadCpuFeatures()).kernels, SharedThreads()),
        activations_(int64_t{num_rows} * kHiddenSize * 4),
        out_(int64_t{num_rows} * kHiddenSize * 4),
        order_(kNumExperts),
        ids_(static_cast<size_t>(num_rows * kTopK)),
        weights_(ids_.size(), 0.1f) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < int64_t{num_rows} * kHiddenSize; ++i) {
      const float value = normal(random_);
      const BF16 narrow = ToBF16(value);
      if (type_ == ActivationType::kF32) {
        std::memcpy(activations_.data + i * 4, &value, 4);
      } else {
        std::memcpy(activations_.data + i * 2, &narrow, 2);
      }
    }
    std::iota(order_.begin(), order_.end(), uint16_t{0});
  }

  // Draws layer and experts of the next call.
  void Draw() {
    layer_ = static_cast<int32_t>(static_cast<int64_t>(random_()) % num_layers_);
    if (settings.skew > 0) return DrawSkewed();
    for (size_t i = 0; i < ids_.size(); ++i) {
      const size_t first = i % kTopK;
      std::uniform_int_distribution<size_t> pick(first, order_.size() - 1);
      std::swap(order_[first], order_[pick(random_)]);
      ids_[i] = order_[first];
    }
  }

  void Run() {
    const absl::Status status =
        executor_.Run({.layer = layer_,
                       .num_rows = num_rows_,
                       .top_k = kTopK,
                       .expert_ids = reinterpret_cast<const std::byte*>(ids_.data()),
                       .weights = reinterpret_cast<const std::byte*>(weights_.data()),
                       .activations = activations_.data,
                       .activation_type = type_,
                       .out = out_.data,
                       .reply_type = ActivationType::kF32});
    CHECK(status.ok());
  }

  const GroupedExecutor::CallStats& stats() const { return executor_.last_call(); }
  double macs() const { return static_cast<double>(ids_.size()) * 3 * kHiddenSize * kWidth; }

 private:
  void DrawSkewed() {
    std::normal_distribution<float> normal;
    std::vector<float> bias(kNumExperts);
    for (float& value : bias) value = normal(random_) * settings.skew;
    std::vector<float> logits(kNumExperts);
    for (size_t first = 0; first < ids_.size(); first += kTopK) {
      for (size_t i = 0; i < logits.size(); ++i) logits[i] = bias[i] + normal(random_);
      std::partial_sort_copy(order_.begin(), order_.end(), ids_.begin() + static_cast<long>(first),
                             ids_.begin() + static_cast<long>(first + kTopK),
                             [&](uint16_t a, uint16_t b) { return logits[a] > logits[b]; });
    }
  }
  static PackedTable TableOf(const Pool& pool, int32_t num_rows) {
    PackedTable table;
    table.geometry = {.num_layers = static_cast<int32_t>(pool.num_layers()),
                      .hidden_size = kHiddenSize,
                      .num_experts = kNumExperts,
                      .moe_intermediate_size = kWidth,
                      .max_top_k = kTopK,
                      .first_expert = 0,
                      .num_shard_experts = kNumExperts,
                      .first_width = 0,
                      .num_shard_width = kWidth,
                      .max_rows = num_rows};
    table.format = pool.format();
    table.expert_bytes = static_cast<uint64_t>(pool.expert_bytes());
    for (int64_t layer = 0; layer < pool.num_layers(); ++layer) {
      table.layers.emplace_back();
      for (int32_t expert = 0; expert < kNumExperts; ++expert) {
        table.layers.back().push_back(pool.Expert(layer, settings.one_expert ? 0 : expert));
      }
    }
    return table;
  }
  // The executor wants kernels of both precisions; the others are not called.
  static PackedKernelPair PairOf(const PackedKernels& kernels) {
    const auto find = [&](Precision precision) {
      return kernels.precision == precision
                 ? &kernels
                 : FindPackedKernels(kernels.format, precision, kernels.tier, ReadCpuFeatures());
    };
    return {find(Precision::kExact), find(Precision::kFast)};
  }

  const int32_t num_rows_;
  const int64_t num_layers_;
  const ActivationType type_;
  const PackedTable table_;
  PackedExecutor executor_;
  std::mt19937 random_{7};
  AlignedBytes activations_;
  AlignedBytes out_;
  std::vector<uint16_t> order_;
  std::vector<uint16_t> ids_;
  std::vector<float> weights_;
  int32_t layer_ = 0;
};

// 0 where the kernels use no such instruction: kExact of bf16 and nf4 multiplies in f32.
double PeakOf(const PackedKernels& kernels) {
  const bool bf16 = kernels.format == PoolFormat::kBF16 || kernels.format == PoolFormat::kNF4;
  if (bf16 && kernels.precision == Precision::kExact) return 0;
  static std::map<std::string, double> measured;
  const std::string name = std::string(kernels.tier) + (bf16 ? " bf16" : " int8");
  const auto [at, fresh] = measured.emplace(name, 0.0);
  if (fresh) {
    at->second =
        MeasureDotPeak(SharedThreads(), kernels.tier, bf16 ? DotInputs::kBF16 : DotInputs::kInt8);
    if (at->second > 0) {
      std::printf("%s from registers, %d threads: %.0f GMAC/s\n", name.c_str(),
                  settings.num_threads, at->second / 1e9);
    }
  }
  return at->second;
}

void BM_Call(benchmark::State& state, const PackedKernels* kernels, int32_t num_rows) {
  const Pool& pool = PoolOf(kernels->format);
  std::vector<double> reads;
  MeasureBandwidth(pool, &reads);
  const double peak = PeakOf(*kernels);
  Runner runner(*kernels, pool, num_rows);
  runner.Draw();
  runner.Run();
  std::vector<double> rates;
  std::vector<double> phases[3];
  double macs_per_byte = 0;
  for (auto _ : state) {
    runner.Draw();
    const double start = Now();
    runner.Run();
    const double elapsed = Now() - start;
    state.SetIterationTime(elapsed);
    const GroupedExecutor::CallStats& stats = runner.stats();
    const auto bytes = static_cast<double>(stats.weight_bytes);
    rates.push_back(bytes / elapsed);
    macs_per_byte = runner.macs() / bytes;
    phases[0].push_back(stats.prepare_s);
    phases[1].push_back(stats.gate_up_s);
    phases[2].push_back(stats.down_s);
  }
  MeasureBandwidth(pool, &reads);
  std::sort(reads.begin(), reads.end());
  std::sort(rates.begin(), rates.end());
  const double median = rates[rates.size() / 2];
  const double bandwidth = reads[reads.size() / 2];
  state.counters["bandwidth"] = bandwidth / 1e9;
  state.counters["GBps"] = median / 1e9;
  state.counters["best"] = rates.back() / 1e9;
  state.counters["share"] = median / bandwidth;
  state.counters["share_best"] = rates.back() / reads.back();
  state.counters["x"] = bandwidth / median;
  for (int i = 0; i < 3; ++i) {
    std::sort(phases[i].begin(), phases[i].end());
    state.counters[std::array{"prepare_ms", "gate_up_ms", "down_ms"}[static_cast<size_t>(i)]] =
        phases[i][phases[i].size() / 2] * 1e3;
  }
  if (peak > 0) {
    const double planes = kernels->precision == Precision::kExact ? 2 : 1;
    state.counters["peak"] = median * macs_per_byte * planes / peak;
  }
}

bool Wanted(const std::vector<std::string>& names, std::string_view name) {
  return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

void RegisterAll() {
  for (const std::string& format : settings.formats) {
    for (const PackedKernels* kernels : AvailablePackedKernels(ReadCpuFeatures())) {
      const char* precision = kernels->precision == Precision::kExact ? "exact" : "fast";
      if (PoolFormatName(kernels->format) != format) continue;
      if (!Wanted(settings.tiers, kernels->tier)) continue;
      if (settings.tiers.empty() && std::strcmp(kernels->tier, "scalar") == 0) continue;
      if (!Wanted(settings.precisions, precision)) continue;
      for (const std::string& rows : settings.rows) {
        const std::string name = format + "/" + precision + "/" + kernels->tier + "/rows:" + rows;
        benchmark::RegisterBenchmark(name.c_str(), BM_Call, kernels, std::atoi(rows.c_str()))
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

std::vector<std::string> Split(std::string_view list) {
  std::vector<std::string> out;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    out.emplace_back(list.substr(0, comma));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return out;
}

}  // namespace

int Main(int argc, char** argv) {
  std::vector<char*> rest = {argv[0]};
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    const std::string_view value = arg.substr(std::min(arg.find('='), arg.size() - 1) + 1);
    const auto is = [&](std::string_view name) { return arg.rfind(name, 0) == 0; };
    if (is("--threads=")) {
      settings.num_threads = std::max(1, std::atoi(std::string(value).c_str()));
    } else if (is("--memory=")) {
      settings.memory_gib = std::atof(std::string(value).c_str());
    } else if (is("--format=")) {
      settings.formats = Split(value);
    } else if (is("--tier=")) {
      settings.tiers = Split(value);
    } else if (is("--precision=")) {
      settings.precisions = Split(value);
    } else if (is("--rows=")) {
      settings.rows = Split(value);
    } else if (is("--min_pairs_by_expert=")) {
      settings.executor.min_pairs_by_expert = std::atoll(std::string(value).c_str());
    } else if (is("--max_product_bytes=")) {
      settings.executor.max_product_bytes = std::strtoull(std::string(value).c_str(), nullptr, 10);
    } else if (is("--skew=")) {
      settings.skew = std::strtof(std::string(value).c_str(), nullptr);
    } else if (arg == "--small_pages") {
      settings.small_pages = true;
    } else if (arg == "--one_expert") {
      settings.one_expert = true;
    } else {
      rest.push_back(argv[i]);
    }
  }
  RegisterAll();
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace banyan::expert

int main(int argc, char** argv) { return banyan::expert::Main(argc, argv); }
