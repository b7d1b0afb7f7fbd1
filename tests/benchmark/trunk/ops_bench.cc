// The trunk's operations at the real geometry, beside what this machine can do at best: read
// bandwidth and multiply-adds of the same threads, measured at start.
//
//   linear: GB/s of weights read and GFLOP/s by rows, weights far larger than the caches
//   step:   a decoding step of the demo model on the trunk alone, experts answered with zeros
//   ops_bench [--threads=N] [--tier=NAME] [--benchmark_...]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/quant/bf16.h"
#include "services/trunk/model/decoder.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "tests/benchmark/trunk/peak.h"

namespace banyan::trunk {
namespace {

struct Settings {
  int num_threads = UsableCpuCount();
  std::string tier = "auto";
};
Settings settings;

struct Machine {
  WorkerPool pool{{.num_threads = settings.num_threads}};
  std::unique_ptr<Backend> backend = *CreateCpuBackend({.cpu_tier = settings.tier}, &pool);
};

std::vector<float> Random(size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.1f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// in_proj_qkvz of the 80B model: 12288 x 2048, 50 or, in codes of 8 bits, 27 MB; four of them in
// turn.
void BM_Linear(benchmark::State& state, DType dtype) {
  constexpr size_t kOutputs = 12288;
  constexpr size_t kInputs = 2048;
  constexpr size_t kWeights = kOutputs * kInputs;
  constexpr size_t kScales = kWeights / static_cast<size_t>(kInt8GroupColumns);
  constexpr size_t kMatrices = 4;
  const auto rows = static_cast<int32_t>(state.range(0));
  Machine machine;
  const size_t bytes = kWeights * DTypeSizeBytes(dtype);
  std::vector<std::byte> weights(kMatrices * bytes);
  const std::vector<float> scales(dtype == DType::kI8 ? kMatrices * kScales : 0, 0.001f);
  for (size_t i = 0; i < kMatrices * kWeights; ++i) {
    const int value = static_cast<int>(i % 251) - 125;
    const BF16 wide = ToBF16(static_cast<float>(value) * 0.001f);
    const auto narrow = static_cast<int8_t>(value);
    if (dtype == DType::kI8) {
      std::memcpy(weights.data() + i, &narrow, 1);
    } else {
      std::memcpy(weights.data() + i * 2, &wide, 2);
    }
  }
  const std::vector<float> x = Random(static_cast<size_t>(rows) * kInputs);
  std::vector<float> y(static_cast<size_t>(rows) * kOutputs);
  size_t turn = 0;
  for (auto _ : state) {
    const size_t i = turn++ % kMatrices;
    const Matrix matrix = {.dtype = dtype,
                           .rows = kOutputs,
                           .cols = kInputs,
                           .data = weights.data() + i * bytes,
                           .scales = dtype == DType::kI8 ? scales.data() + i * kScales : nullptr};
    const LinearArgs calls[] = {{.x = x.data(), .w = &matrix, .y = y.data()}};
    machine.backend->Linear(rows, calls);
  }
  const double times = static_cast<double>(state.iterations()) * 1e-9;
  const auto all_bytes =
      static_cast<double>(bytes + (dtype == DType::kI8 ? kScales * sizeof(float) : 0));
  state.counters["weights_GB/s"] =
      benchmark::Counter(all_bytes * times, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(2.0 * static_cast<double>(kWeights) * rows * times,
                                                 benchmark::Counter::kIsRate);
}
void LinearRowCounts(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgName("rows")->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int rows : {1, 2, 3, 4, 6, 8, 16, 64, 512}) benchmark->Arg(rows);
}
BENCHMARK_CAPTURE(BM_Linear, bf16, DType::kBF16)->Apply(LinearRowCounts);
BENCHMARK_CAPTURE(BM_Linear, int8, DType::kI8)->Apply(LinearRowCounts);

constexpr DeltaNetShape kDeltaNet = {.num_key_heads = 16,
                                     .num_value_heads = 32,
                                     .key_head_dim = 128,
                                     .value_head_dim = 128,
                                     .conv_taps = 4,
                                     .eps = 1e-6f};

// One layer's convolution and recurrence: `rows` tokens of one prompt, or of as many sequences.
void BM_DeltaNet(benchmark::State& state, bool prefill) {
  const auto rows = static_cast<int32_t>(state.range(0));
  const int32_t slots = prefill ? 1 : rows;
  Machine machine;
  Backend& backend = *machine.backend;
  CHECK(backend
            .Reserve({.max_rows = rows,
                      .max_segments = slots,
                      .max_position = 1 << 20,
                      .num_experts = 1,
                      .attention = {},
                      .delta_net = kDeltaNet})
            .ok());
  const auto r = static_cast<size_t>(rows);
  const auto s = static_cast<size_t>(slots);
  const std::vector<float> qkvz = Random(r * static_cast<size_t>(kDeltaNet.qkvz_dim()));
  const std::vector<float> ba = Random(r * 64), weight = Random(4 * 8192), rate(32, -1.0f),
                           bias(32, 0.0f), norm(128, 1.0f);
  std::vector<float> conv(s * static_cast<size_t>(kDeltaNet.conv_state_floats())),
      recurrent(s * static_cast<size_t>(kDeltaNet.state_floats())), qkv(r * 8192), decay(r * 32),
      beta(r * 32), out(r * 4096);
  std::vector<PlanSegment> segments;
  for (int32_t i = 0; i < slots; ++i) {
    segments.push_back({.first_row = i,
                        .num_rows = rows / slots,
                        .first_position = 64,
                        .slot = i,
                        .chunked = prefill});
  }
  StepPlan plan;
  plan.num_rows = rows;
  plan.segments = segments;
  for (auto _ : state) {
    backend.BeginStep(plan);
    backend.CausalConv({.shape = kDeltaNet,
                        .qkvz = qkvz.data(),
                        .ba = ba.data(),
                        .weight = weight.data(),
                        .neg_decay_rate = rate.data(),
                        .dt_bias = bias.data(),
                        .conv_states = conv.data(),
                        .qkv = qkv.data(),
                        .log_decay = decay.data(),
                        .beta = beta.data()});
    backend.DeltaNet({.shape = kDeltaNet,
                      .qkv = qkv.data(),
                      .qkvz = qkvz.data(),
                      .log_decay = decay.data(),
                      .beta = beta.data(),
                      .norm_weight = norm.data(),
                      .states = recurrent.data(),
                      .out = out.data()});
  }
  state.counters["us/row"] =
      benchmark::Counter(1e-6 * static_cast<double>(state.iterations()) * rows,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK_CAPTURE(BM_DeltaNet, decode, false)->ArgName("rows")->Arg(1)->Arg(16)->UseRealTime();
BENCHMARK_CAPTURE(BM_DeltaNet, prefill, true)->ArgName("rows")->Arg(64)->Arg(512)->UseRealTime();

constexpr AttentionShape kAttention = {
    .num_heads = 16, .num_kv_heads = 2, .head_dim = 256, .rotary_dim = 64, .eps = 1e-6f};

// `rows` tokens of one sequence behind `context` others.
void BM_Attention(benchmark::State& state) {
  const auto rows = static_cast<int32_t>(state.range(0));
  const auto context = static_cast<int32_t>(state.range(1));
  Machine machine;
  Backend& backend = *machine.backend;
  CHECK(backend
            .Reserve({.max_rows = rows,
                      .max_segments = 1,
                      .max_position = context + rows,
                      .num_experts = 1,
                      .attention = kAttention,
                      .delta_net = {}})
            .ok());
  const auto r = static_cast<size_t>(rows);
  std::vector<int32_t> pages, positions;
  for (int32_t p = 0; p * kOpsPageTokens < context + rows; ++p) pages.push_back(p);
  for (int32_t i = 0; i < rows; ++i) positions.push_back(context + i);
  const std::vector<float> cos(r * 32, 1.0f), sin(r * 32, 0.0f), norm(256, 0.0f);
  std::vector<float> q = Random(r * 8192), k = Random(r * 512), v = Random(r * 512), out(r * 4096);
  std::vector<float> keys = Random(pages.size() * 2 * 256 * 64), values = keys;
  const PlanSegment segments[] = {{.first_row = 0, .num_rows = rows, .first_position = context}};
  StepPlan plan;
  plan.num_rows = rows;
  plan.segments = segments;
  plan.positions = positions;
  plan.page_ids = pages;
  plan.rope_cos = cos;
  plan.rope_sin = sin;
  for (auto _ : state) {
    backend.BeginStep(plan);
    const AttentionArgs args = {.shape = kAttention,
                                .q_gate = q.data(),
                                .k = k.data(),
                                .v = v.data(),
                                .q_norm = norm.data(),
                                .k_norm = norm.data(),
                                .key_pages = keys.data(),
                                .value_pages = values.data(),
                                .out = out.data()};
    backend.PrepareAttention(args);
    backend.PagedAttention(args);
  }
  const double products = 4.0 * 16 * 256 * rows * (context + rows / 2.0);
  state.counters["GFLOP/s"] = benchmark::Counter(
      products * static_cast<double>(state.iterations()) * 1e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Attention)
    ->ArgNames({"rows", "context"})
    ->Args({1, 1023})
    ->Args({1, 8191})
    ->Args({64, 1024})
    ->Args({512, 4096})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// Experts that know nothing and answer at once.
class ZeroExperts : public ExpertTransport {
 public:
  explicit ZeroExperts(int32_t hidden_size) : hidden_size_(static_cast<size_t>(hidden_size)) {}
  absl::Status Dispatch(const Batch& batch) override {
    num_rows_ = static_cast<size_t>(batch.num_rows);
    return absl::OkStatus();
  }
  absl::Status Combine(float* out) override {
    std::fill_n(out, num_rows_ * hidden_size_, 0.0f);
    return absl::OkStatus();
  }
  void Abandon() override {}
  absl::Status Ready() const override { return absl::OkStatus(); }
  absl::Status WaitReady(absl::Time) override { return absl::OkStatus(); }

 private:
  size_t hidden_size_;
  size_t num_rows_ = 0;
};

// A step of the demo model with its logits: `sequences` decoding, or one prompt of 512 tokens.
void BM_DemoStep(benchmark::State& state, bool prefill) {
  const auto sequences = static_cast<int32_t>(state.range(0));
  const std::string directory = std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo";
  const ModelConfig config = *LoadModelConfig(directory);
  const auto checkpoint = *Checkpoint::Open(directory);
  Machine machine;
  ZeroExperts experts(config.hidden_size);
  const auto decoder = *Decoder::Create(config, {.max_rows = 512, .num_slots = 32, .num_pages = 64},
                                        *checkpoint, machine.backend.get(), &experts);
  const int32_t rows = prefill ? 512 : sequences;
  std::vector<int32_t> tokens(static_cast<size_t>(rows), 7), wanted;
  std::vector<std::vector<int32_t>> pages;
  for (int32_t i = 0; i < sequences; ++i) {
    pages.emplace_back();
    for (int32_t p = 0; p < (prefill ? 8 : 2); ++p) pages.back().push_back(2 * i + p);
    wanted.push_back(prefill ? rows - 1 : i);
  }
  std::vector<StepSegment> segments;
  for (int32_t i = 0; i < sequences; ++i) {
    segments.push_back({.first_row = i,
                        .num_rows = rows / sequences,
                        .first_position = prefill ? 0 : 100,
                        .slot = i,
                        .pages = pages[static_cast<size_t>(i)],
                        .chunked = prefill});
  }
  std::vector<float> logits(wanted.size() * static_cast<size_t>(config.vocab_size));
  for (auto _ : state) {
    CHECK(decoder->Forward({.step_id = 0, .token_ids = tokens, .segments = segments}).ok());
    CHECK(decoder->ComputeLogits(wanted, logits).ok());
  }
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(state.iterations()) * rows,
                                                  benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(BM_DemoStep, decode, false)
    ->ArgName("sequences")
    ->Arg(1)
    ->Arg(4)
    ->Arg(16)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_DemoStep, prefill512, true)
    ->ArgName("sequences")
    ->Arg(1)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg.rfind("--threads=", 0) == 0) {
      settings.num_threads = std::max(1, std::atoi(argv[i] + std::strlen("--threads=")));
    } else if (arg.rfind("--tier=", 0) == 0) {
      settings.tier = arg.substr(std::strlen("--tier="));
    } else {
      std::fprintf(stderr, "ops_bench: unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  WorkerPool pool({.num_threads = settings.num_threads});
  if (const auto backend = CreateCpuBackend({.cpu_tier = settings.tier}, &pool); backend.ok()) {
    std::printf("tier %s, %d threads; this machine: read %.1f GB/s, multiply-add %.0f GFLOP/s\n",
                std::string((*backend)->name()).c_str(), settings.num_threads,
                MeasureReadBandwidth(&pool) * 1e-9, MeasurePeakFlops(&pool) * 1e-9);
  } else {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace banyan::trunk

int main(int argc, char** argv) { return banyan::trunk::Main(argc, argv); }
