// What a call costs an expert host beside reading weights: frame in, activations prepared, rows
// grouped, the loops over tiles with their barrier, sums, frame out. Everything is the service's
// own except the two kernels that read weights, which do nothing; gRPC and the socket are not in it
// (expert_call_bench has them). Goal at one row: 15 us.
//   call_overhead_bench [NUM_THREADS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "common/base/check.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/payload_buffer.h"
#include "services/expert/kernels/cpu_features.h"
#include "services/expert/kernels/kernel_table.h"
#include "services/expert/runtime/packed_executor.h"

namespace banyan::expert {
namespace {

constexpr int32_t kHiddenSize = 2048;
constexpr int32_t kWidth = 512;
constexpr int32_t kNumExperts = 512;
constexpr int32_t kTopK = 10;
constexpr int kCalls = 20'000;

PackedKernels WithoutWeights(Precision precision) {
  const PackedKernels* const real =
      FindPackedKernels(PoolFormat::kInt8, precision, "avx512_vnni", ReadCpuFeatures());
  CHECK(real != nullptr);
  PackedKernels out = *real;
  out.gate_up = [](const PackedGateUpArgs&) {};
  out.down = [](const PackedDownArgs&) {};
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

void Measure(int32_t num_rows, int num_threads) {
  PackedTable table;
  table.geometry = {.num_layers = 1,
                    .hidden_size = kHiddenSize,
                    .num_experts = kNumExperts,
                    .moe_intermediate_size = kWidth,
                    .max_top_k = kTopK,
                    .num_shard_experts = kNumExperts,
                    .num_shard_width = kWidth,
                    .max_rows = kMaxRows};
  table.format = PoolFormat::kInt8;
  table.layers.assign(1, std::vector<PackedExpert>(kNumExperts));
  const PackedKernels exact = WithoutWeights(Precision::kExact);
  const PackedKernels fast = WithoutWeights(Precision::kFast);
  WorkerPool pool({.num_threads = num_threads});
  PackedExecutor executor({}, table, {&exact, &fast},
                          *ChooseKernels("auto", ReadCpuFeatures()).kernels, pool);
  ForwardFrameParser parser(kHiddenSize);
  std::mt19937 random(1);
  std::vector<grpc::ByteBuffer> requests;
  for (int i = 0; i < 16; ++i) requests.push_back(Request(num_rows, random));
  std::vector<double> times;
  PayloadBuffer reply;
  const size_t reply_bytes = static_cast<size_t>(num_rows) * kHiddenSize * sizeof(float);
  const int calls = std::max(200, kCalls / num_rows);
  for (int i = 0; i < calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto view = parser.ParseRequest(requests[static_cast<size_t>(i) % requests.size()]);
    CHECK(view.ok());
    const absl::Status status = executor.Run({.layer = 0,
                                              .num_rows = num_rows,
                                              .top_k = kTopK,
                                              .expert_ids = view->expert_ids.data(),
                                              .weights = view->weights.data(),
                                              .activations = view->activations.data(),
                                              .activation_type = ActivationType::kF32,
                                              .out = reply.Prepare(reply_bytes).data(),
                                              .reply_type = ActivationType::kF32});
    CHECK(status.ok());
    const grpc::ByteBuffer frame = MakeForwardResponse(
        {.sequence = 1, .num_rows = static_cast<uint32_t>(num_rows), .flags = kReplyF32},
        reply.Share(reply_bytes));
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() * 1e6);
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) {
    return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
  };
  std::printf("%4d rows, %2d threads: least %.1f us, p10 %.1f, p50 %.1f, p90 %.1f, p99 %.1f\n",
              num_rows, num_threads, times.front(), at(0.1), at(0.5), at(0.9), at(0.99));
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
  return 0;
}
