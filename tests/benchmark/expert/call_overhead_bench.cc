// What a call costs an expert host beside reading weights: frame in, activations prepared, rows
// grouped, the loops over tiles with their barrier, sums, frame out. Everything is the service's
// own except the two kernels that read weights, which do nothing; gRPC and the socket are not in it
// (expert_call_bench has them). Goal at one row: 15 us.
//
// The last line: how much longer a call takes when the thread that has its first tile sleeps for a
// millisecond there. Tiles are taken one by one, so the others do the rest meanwhile.
//   call_overhead_bench [NUM_THREADS]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "common/base/check.h"
#include "common/cpu/cpu_features.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/payload_buffer.h"
#include "services/expert/kernels/kernel_table.h"
#include "services/expert/runtime/packed_executor.h"

namespace banyan::expert {
namespace {

constexpr int32_t kHiddenSize = 2048;
constexpr int32_t kWidth = 512;
constexpr int32_t kNumExperts = 512;
constexpr int32_t kTopK = 10;
constexpr int kCalls = 20'000;
constexpr int32_t kRowsWithAway = 16;
constexpr int kCallsWithAway = 200;
constexpr auto kAway = std::chrono::milliseconds(1);
constexpr auto kTileTime = std::chrono::microseconds(10);

using Clock = std::chrono::steady_clock;

double Microseconds(Clock::duration time) {
  return std::chrono::duration<double>(time).count() * 1e6;
}

PackedKernels WithoutWeights(Precision precision) {
  const PackedKernels* const real =
      FindPackedKernels(PoolFormat::kInt8, precision, "avx512_vnni", ReadCpuFeatures());
  CHECK(real != nullptr);
  PackedKernels out = *real;
  out.gate_up = [](const PackedGateUpArgs&) {};
  out.down = [](const PackedDownArgs&) {};
  return out;
}

// The next tile of gate and up sleeps, and how long it did.
std::atomic<bool> next_is_away{false};
std::atomic<double> away_us{0};

// Tiles of gate and up that take as long as ones that read weights.
PackedKernels WithTime(Precision precision) {
  PackedKernels out = WithoutWeights(precision);
  out.gate_up = [](const PackedGateUpArgs&) {
    const auto start = Clock::now();
    if (next_is_away.load(std::memory_order_relaxed) && next_is_away.exchange(false)) {
      std::this_thread::sleep_for(kAway);
      away_us = Microseconds(Clock::now() - start);
    }
    const auto end = Clock::now() + kTileTime;
    while (Clock::now() < end) {
    }
  };
  return out;
}

grpc::ByteBuffer Request(int32_t num_rows, std::mt19937& random) {
  std::vector<uint16_t> ids;
  std::vector<uint16_t> all(kNumExperts);
  for (uint16_t i = 0; i < kNumExperts; ++i) all[i] = i;
  for (int32_t row = 0; row < num_rows; ++row) {
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + kTopK);
  }
  const std::vector<float> weights(ids.size(), 0.1f);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(num_rows) * kHiddenSize);
  for (float& value : x) value = normal(random);
  return MakeForwardRequest({.sequence = 1,
                             .layer = 0,
                             .num_rows = static_cast<uint32_t>(num_rows),
                             .top_k = kTopK,
                             .flags = kActivationsF32 | kReplyF32},
                            ids, weights, grpc::Slice(x.data(), x.size() * sizeof(float)));
}

// The service's part of calls of so many rows.
class Host {
 public:
  Host(int32_t num_rows, int num_threads, const PackedKernels& exact, const PackedKernels& fast)
      : num_rows_(num_rows),
        table_({.geometry = {.num_layers = 1,
                             .hidden_size = kHiddenSize,
                             .num_experts = kNumExperts,
                             .moe_intermediate_size = kWidth,
                             .max_top_k = kTopK,
                             .num_shard_experts = kNumExperts,
                             .num_shard_width = kWidth,
                             .max_rows = kMaxRows},
                .format = PoolFormat::kInt8,
                .layers = {std::vector<PackedExpert>(kNumExperts)}}),
        pool_({.num_threads = num_threads}),
        executor_({}, table_, {&exact, &fast}, *ChooseKernels("auto", ReadCpuFeatures()).kernels,
                  pool_) {
    std::mt19937 random(1);
    for (int i = 0; i < 16; ++i) requests_.push_back(Request(num_rows, random));
  }

  // The microseconds of the next call.
  double Call() {
    const size_t reply_bytes = static_cast<size_t>(num_rows_) * kHiddenSize * sizeof(float);
    const auto start = Clock::now();
    const auto view = parser_.ParseRequest(requests_[calls_++ % requests_.size()]);
    CHECK(view.ok());
    const absl::Status status = executor_.Run({.layer = 0,
                                               .num_rows = num_rows_,
                                               .top_k = kTopK,
                                               .expert_ids = view->expert_ids.data(),
                                               .weights = view->weights.data(),
                                               .activations = view->activations.data(),
                                               .activation_type = ActivationType::kF32,
                                               .out = reply_.Prepare(reply_bytes).data(),
                                               .reply_type = ActivationType::kF32});
    CHECK(status.ok());
    const grpc::ByteBuffer frame = MakeForwardResponse(
        {.sequence = 1, .num_rows = static_cast<uint32_t>(num_rows_), .flags = kReplyF32},
        reply_.Share(reply_bytes));
    return Microseconds(Clock::now() - start);
  }

 private:
  const int32_t num_rows_;
  const PackedTable table_;
  WorkerPool pool_;
  PackedExecutor executor_;
  ForwardFrameParser parser_{kHiddenSize};
  std::vector<grpc::ByteBuffer> requests_;
  PayloadBuffer reply_;
  size_t calls_ = 0;
};

// Of sorted times.
double At(const std::vector<double>& times, double share) {
  return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
}

void Measure(int32_t num_rows, int num_threads) {
  const PackedKernels exact = WithoutWeights(Precision::kExact);
  const PackedKernels fast = WithoutWeights(Precision::kFast);
  Host host(num_rows, num_threads, exact, fast);
  std::vector<double> times;
  const int calls = std::max(200, kCalls / num_rows);
  for (int i = 0; i < calls; ++i) times.push_back(host.Call());
  std::sort(times.begin(), times.end());
  std::printf("%4d rows, %2d threads: least %.1f us, p10 %.1f, p50 %.1f, p90 %.1f, p99 %.1f\n",
              num_rows, num_threads, times.front(), At(times, 0.1), At(times, 0.5), At(times, 0.9),
              At(times, 0.99));
}

void MeasureAway(int num_threads) {
  const PackedKernels exact = WithTime(Precision::kExact);
  const PackedKernels fast = WithTime(Precision::kFast);
  Host host(kRowsWithAway, num_threads, exact, fast);
  std::vector<double> plain, longer, away;
  for (int i = 0; i < kCallsWithAway; ++i) {
    plain.push_back(host.Call());
    next_is_away = true;
    longer.push_back(host.Call());
    away.push_back(away_us);
  }
  for (std::vector<double>* times : {&plain, &longer, &away}) {
    std::sort(times->begin(), times->end());
  }
  std::printf(
      "%4d rows, %2d threads, tiles of %.0f us: p50 %.0f us; a thread away for %.0f us: p50 %.0f, "
      "%.0f longer\n",
      kRowsWithAway, num_threads, Microseconds(kTileTime), At(plain, 0.5), At(away, 0.5),
      At(longer, 0.5), At(longer, 0.5) - At(plain, 0.5));
}

}  // namespace
}  // namespace banyan::expert

int main(int argc, char** argv) {
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : banyan::UsableCpuCount();
  if (num_threads < 1) {
    std::fprintf(stderr, "usage: %s [NUM_THREADS], at least 1\n", argv[0]);
    return 2;
  }
  for (const int32_t rows : {1, 4, 16, 64, 512}) banyan::expert::Measure(rows, num_threads);
  if (num_threads > 1) banyan::expert::MeasureAway(num_threads);
  return 0;
}
