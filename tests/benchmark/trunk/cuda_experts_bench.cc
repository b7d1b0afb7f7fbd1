// Experts of long prompts on the device, their weights in the host's memory.
#include <sys/mman.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "common/quant/packed_expert.h"
#include "common/quant/packed_matrix.h"
#include "services/trunk/ops/cuda/cuda_backend.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/routing/expert_share.h"
#include "tests/benchmark/trunk/cuda_bench.h"

namespace banyan::trunk {
namespace {

constexpr int32_t kHidden = 2048;
constexpr int32_t kWidth = 512;
constexpr int32_t kExperts = 512;
constexpr int32_t kTopK = 10;
constexpr int32_t kOwn = 320;
constexpr int32_t kMaxRows = 4159;
constexpr int kLayers = 2;  // in turn, more than the host's caches hold
constexpr int kRepetitions = 7;
constexpr std::chrono::milliseconds kIdle{5};  // between two layers

// The same expert again and again: where it lies is what matters.
std::span<std::byte> MakePool(PoolFormat format, size_t expert_bytes) {
  const size_t bytes = expert_bytes * kOwn * kLayers;
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  madvise(memory, bytes, MADV_HUGEPAGE);
  auto* const pool = static_cast<std::byte*>(memory);
  const PackedExpertLayout layout = PackedExpertLayoutOf(format, kHidden, kWidth);
  std::mt19937 random{1};
  std::normal_distribution<float> values(0, 0.02f);
  std::vector<float> matrix(static_cast<size_t>(kHidden) * kWidth);
  for (const auto& [offset, outputs, k] :
       {std::tuple<int64_t, int64_t, int64_t>{layout.gate_offset, kWidth, kHidden},
        {layout.up_offset, kWidth, kHidden},
        {layout.down_offset, kHidden, kWidth}}) {
    for (float& value : matrix) value = values(random);
    PackMatrix(format, {matrix.data(), outputs, k, k}, pool + offset);
  }
  for (size_t i = 1; i < size_t{kOwn} * kLayers; ++i) {
    std::memcpy(pool + i * expert_bytes, pool, expert_bytes);
  }
  return {pool, bytes};
}

void Run(PoolFormat format) {
  const auto backend = ValueOf(CreateCudaBackend({}));
  OpLimits limits;
  limits.max_rows = kMaxRows;
  limits.max_segments = 1;
  limits.max_position = 64;
  limits.num_experts = kExperts;
  limits.max_columns = kHidden;
  limits.host_experts = {kHidden, kWidth, kTopK};
  CheckOk(backend->Reserve(limits));
  const auto expert_bytes =
      static_cast<size_t>(PackedExpertLayoutOf(format, kHidden, kWidth).bytes);
  const std::span<std::byte> pool = MakePool(format, expert_bytes);
  const double link = ValueOf(backend->MapHost(pool));
  const SharedBuffer rows = ValueOf(backend->AllocateShared(size_t{kMaxRows} * kHidden * 2));
  auto* const hidden = reinterpret_cast<float*>(
      ValueOf(backend->AllocateDevice(size_t{kMaxRows} * kHidden * sizeof(float))));
  ExpertShare share({kExperts, kTopK, kOwn, kMaxRows});
  std::mt19937 random{2};
  for (const int32_t num_rows : {64, 512, 2048, 4096}) {
    std::vector<uint16_t> ids(static_cast<size_t>(num_rows) * kTopK);
    std::vector<uint16_t> all(kExperts);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    for (int32_t row = 0; row < num_rows; ++row) {
      for (size_t i = 0; i < kTopK; ++i) {
        std::swap(all[i], all[std::uniform_int_distribution<size_t>(i, kExperts - 1)(random)]);
        ids[static_cast<size_t>(row) * kTopK + i] = all[i];
      }
    }
    const std::vector<float> weights(ids.size(), 0.1f);
    const ExpertShare::OwnRows range[] = {{0, num_rows, kOwn}};
    share.Build(num_rows, range, ids.data(), weights.data());
    std::vector<double> times;
    std::vector<double> announced_times;
    double queueing = 0;
    for (int i = 0; i <= 2 * kRepetitions; ++i) {
      const bool announced = i > kRepetitions;
      std::vector<HostExpert> experts;
      std::vector<const std::byte*> next;
      for (const ExpertShare::Group& group : share.groups()) {
        const auto at = static_cast<size_t>(i % kLayers * kOwn + group.expert);
        experts.push_back({pool.data() + at * expert_bytes, group.first_pair, group.num_pairs});
        next.push_back(experts.back().weights);
      }
      if (announced) {
        backend->WillReadHostExperts({format, kHidden, kWidth, next});
        std::this_thread::sleep_for(kIdle);
      }
      const double begin = Now();
      backend->HostExperts(num_rows, {.format = format,
                                      .hidden_size = kHidden,
                                      .width = kWidth,
                                      .rows = rows,
                                      .experts = experts,
                                      .pair_rows = share.pair_rows(),
                                      .pair_weights = share.pair_weights(),
                                      .hidden = hidden});
      queueing = Now() - begin;
      CheckOk(backend->Synchronize());
      if (i > 0) (announced ? announced_times : times).push_back(Now() - begin);
    }
    const double seconds = Median(times);
    const double bytes = static_cast<double>(share.groups().size() * expert_bytes);
    const double flops = static_cast<double>(share.pair_rows().size()) * 2 * 3 * kHidden * kWidth;
    std::printf(
        "%s, %4d rows: %3zu of %d experts, %6.2f ms, %5.1f GB/s (link %5.1f), %6.2f TFLOP/s, "
        "queued in %.2f ms; announced %lld ms before: %6.2f ms\n",
        std::string(PoolFormatName(format)).c_str(), num_rows, share.groups().size(), kOwn,
        seconds * 1e3, bytes / seconds * 1e-9, link * 1e-9, flops / seconds * 1e-12, queueing * 1e3,
        static_cast<long long>(kIdle.count()), Median(announced_times) * 1e3);
  }
}

}  // namespace

void BenchmarkExperts() {
  for (const PoolFormat format :
       {PoolFormat::kNF4, PoolFormat::kInt4, PoolFormat::kInt8, PoolFormat::kBF16}) {
    Run(format);
  }
}

}  // namespace banyan::trunk
