// The CUDA backend at the full model's geometry beside what this card can do at best: bytes per
// second of a device-to-device copy (read and written), measured at start.
//
//   cuda_bench [ops] [linear] [delta] [top] [step] [short] [parallel] [halves] [small]
//              [--directory=DIR]
//     ops    each operation: microseconds, GB/s of what must be read and written, share of the
//            copy's
//     linear  of these, products
//     delta  of these, convolution and DeltaNet
//     top    of these, what becomes of a row of logits
//     step   the whole trunk with experts that answer at once with zeros: milliseconds a decode
//            step by batch and context, and prefill, choices included. Writes 4.7 GB of random
//            weights to DIR (/dev/shm) and removes them.
//     short  few of these steps
//     parallel  a few of these steps on one GPU, on two, four and eight, as many as there are.
//     halves  prompts undivided and in two halves, 12 layers, with experts that take their time:
//            one call after the other, 12 ms and 12 us a row (docs/adr/two-halves.md).
//     small  those of `step` that take as little memory as it goes, and how much it is
// Times are medians of repetitions, each many calls queued together; weights go round a set larger
// than the second-level cache.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/check.h"
#include "common/config/model_config.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"
#include "common/plan/tensor_classes.h"
#include "common/plan/trunk_arena.h"
#include "services/trunk/model/decoder.h"
#include "services/trunk/model/parallel_decoder.h"
#include "services/trunk/model/rank_threads.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/collective/nccl.h"
#include "services/trunk/ops/cuda/cuda_backend.h"
#include "services/trunk/ops/cuda/device.h"
#include "services/trunk/ops/cuda/gpu_usage.h"
#include "services/trunk/sampling/sampler.h"

namespace banyan::trunk {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void CheckOk(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  CHECK(status.ok());
}

template <typename T>
T ValueOf(absl::StatusOr<T> value) {
  CheckOk(value.status());
  return *std::move(value);
}

double copy_gbps = 0;

double MeasureCopy() {
  constexpr size_t kBytes = size_t{1} << 30;
  void* from = nullptr;
  void* to = nullptr;
  CHECK(cudaMalloc(&from, kBytes) == cudaSuccess && cudaMalloc(&to, kBytes) == cudaSuccess);
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const double start = Now();
    for (int j = 0; j < 8; ++j)
      cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, nullptr);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    best = std::max(best, 8 * 2.0 * kBytes / (Now() - start) * 1e-9);
  }
  cudaFree(from);
  cudaFree(to);
  return best;
}

// Seconds of one call of `body`, which queues work.
double MedianSeconds(Backend* backend, int calls, const std::function<void(int)>& body) {
  std::vector<double> times;
  for (int repetition = 0; repetition < 7; ++repetition) {
    CheckOk(backend->Synchronize());
    const double start = Now();
    for (int i = 0; i < calls; ++i) body(i);
    CheckOk(backend->Synchronize());
    if (repetition > 0) times.push_back((Now() - start) / calls);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void Report(const char* name, const std::string& shape, double seconds, double bytes,
            double flops) {
  std::printf("%-22s %-26s %9.1f us %8.0f GB/s %5.1f %% of copy %8.1f TFLOP/s\n", name,
              shape.c_str(), seconds * 1e6, bytes / seconds * 1e-9,
              bytes / seconds * 1e-9 / copy_gbps * 100, flops / seconds * 1e-12);
  std::fflush(stdout);
}

class Ops {
 public:
  Ops() : backend_(ValueOf(CreateCudaBackend({}))) {
    CheckOk(backend_->Reserve({.max_rows = 4096,
                               .max_segments = 32,
                               .max_position = 40000,
                               .num_experts = 512,
                               .attention = kAttention,
                               .delta_net = kDeltaNet,
                               .max_logits_rows = kLogitsRows,
                               .vocab_size = kVocab,
                               .max_columns = 4096}));
  }

  void Run() {
    Linears();
    DeltaNets();
    Attentions();
    Small();
    Tops();
  }

  // What becomes of a row of logits: the highest found on the device, or all of them copied.
  void Tops() {
    float* const logits = Floats(int64_t{kLogitsRows} * kVocab, 2);
    const SharedBuffer scores = ValueOf(backend_->AllocateShared(kLogitsRows * kMaxTopLogits * 4));
    const SharedBuffer ids = ValueOf(backend_->AllocateShared(kLogitsRows * kMaxTopLogits * 4));
    const SharedBuffer bounded = ValueOf(backend_->AllocateShared(kLogitsRows * 4));
    std::vector<float> host(static_cast<size_t>(kLogitsRows) * kVocab);
    for (const int32_t rows : {1, 4, 16, 32}) {
      const double bytes = 4.0 * rows * kSampled;
      for (const int32_t k : {1, 20, kMaxTopLogits}) {
        const std::string shape = std::to_string(rows) + " rows, " + std::to_string(k);
        const TopLogitsArgs args = {.vocab_size = kVocab,
                                    .num_ids = kSampled,
                                    .k = k,
                                    .logits = logits,
                                    .scores = reinterpret_cast<float*>(scores.device),
                                    .ids = reinterpret_cast<int32_t*>(ids.device),
                                    .bounded = reinterpret_cast<int32_t*>(bounded.device)};
        Report("top_logits", shape,
               MedianSeconds(backend_.get(), 60, [&](int) { backend_->TopLogits(rows, args); }),
               bytes, 0);
        const auto count = static_cast<size_t>(rows * k) * 4;
        const SharedCopy copies[] = {
            {scores, count}, {ids, count}, {bounded, static_cast<size_t>(rows) * 4}};
        Report("top_logits + wait", shape,
               MedianSeconds(backend_.get(), 60,
                             [&](int) {
                               backend_->TopLogits(rows, args);
                               backend_->CopyToHost(copies);
                               CheckOk(backend_->AwaitHost());
                             }),
               bytes, 0);
      }
      Report("all logits to the host", std::to_string(rows) + " rows",
             MedianSeconds(backend_.get(), 10,
                           [&](int) {
                             CheckOk(backend_->ReadBack(
                                 logits, static_cast<size_t>(rows) * kVocab * 4, host.data()));
                           }),
             4.0 * rows * kVocab, 0);
    }
  }
  void RunLinears() { Linears(); }
  void RunDeltaNets() { DeltaNets(); }

 private:
  static constexpr int32_t kLogitsRows = 32;
  static constexpr int32_t kVocab = 151936;
  static constexpr int32_t kSampled = 151669;
  static constexpr AttentionShape kAttention = {
      .num_heads = 16, .num_kv_heads = 2, .head_dim = 256, .rotary_dim = 64, .eps = 1e-6f};
  static constexpr DeltaNetShape kDeltaNet = {.num_key_heads = 16,
                                              .num_value_heads = 32,
                                              .key_head_dim = 128,
                                              .value_head_dim = 128,
                                              .conv_taps = 4,
                                              .eps = 1e-6f};

  float* Floats(int64_t count, float scale = 0.1f) {
    std::vector<float> block(static_cast<size_t>(std::min<int64_t>(count, 1 << 20)));
    std::normal_distribution<float> normal(0, scale);
    for (float& value : block) value = normal(random_);
    auto* const to = reinterpret_cast<float*>(
        ValueOf(backend_->AllocateDevice(static_cast<size_t>(count) * sizeof(float))));
    for (int64_t at = 0; at < count; at += static_cast<int64_t>(block.size())) {
      const auto some = std::min<int64_t>(static_cast<int64_t>(block.size()), count - at);
      CheckOk(backend_->Upload(block.data(), static_cast<size_t>(some) * sizeof(float), to + at));
    }
    return to;
  }

  void Linears() {
    constexpr int64_t kPoolValues = 320 << 20;  // 640 MB of bf16: the head and more
    auto* const pool = reinterpret_cast<std::byte*>(Floats(kPoolValues / 2));
    // As bf16, pairs of these are an odd but finite mixture.
    float* const scales = Floats(int64_t{151936} * 32);
    float* const x = Floats(int64_t{2048} * 4096);
    float* const y = Floats(int64_t{2048} * 12352);
    struct Call {
      const char* name;
      std::vector<int32_t> n;
      int32_t k;
    };
    const Call calls[] = {{"qkvz + ba", {12288, 64}, 2048},
                          {"delta out / o_proj", {2048}, 4096},
                          {"q + k + v", {8192, 512, 512}, 2048},
                          {"router + shared gate", {512, 1}, 2048},
                          {"shared gate + up", {512, 512}, 2048},
                          {"shared down", {2048}, 512},
                          {"lm_head", {151936}, 2048}};
    for (const Call& call : calls) {
      int64_t outputs = 0;
      for (int32_t n : call.n) outputs += n;
      const int64_t values = outputs * call.k;
      const int copies = static_cast<int>(std::max<int64_t>(1, kPoolValues / values));
      for (const DType dtype : {DType::kBF16, DType::kI8}) {
        const double element = dtype == DType::kI8 ? 1 + 4.0 / kInt8GroupColumns : 2;
        for (int32_t rows : {1, 4, 8, 16, 17, 64, 128, 512, 1024, 2048}) {
          if (outputs > 100000 && rows > 16) continue;
          const int count = std::max(3, rows > 64 ? 6 : 40);
          const double seconds = MedianSeconds(backend_.get(), count, [&](int i) {
            std::vector<Matrix> matrices;
            std::vector<LinearArgs> args;
            const std::byte* w = pool + (outputs > 100000 ? 0 : i % copies) * values * 2;
            float* out = y;
            for (int32_t n : call.n) {
              matrices.push_back({dtype, n, call.k, w, dtype == DType::kI8 ? scales : nullptr});
              w += int64_t{n} * call.k * 2;
            }
            for (const Matrix& m : matrices) {
              args.push_back({.x = x, .w = &m, .y = out});
              out += (int64_t{rows} * m.rows + 15) / 16 * 16;
            }
            backend_->Linear(rows, args);
          });
          const double bytes = element * static_cast<double>(values) +
                               4.0 * rows * static_cast<double>(outputs + call.k);
          Report(call.name, std::string(DTypeName(dtype)) + " " + std::to_string(rows) + " rows",
                 seconds, bytes, 2.0 * rows * static_cast<double>(values));
        }
      }
    }
  }

  struct Plan {
    std::vector<PlanSegment> segments;
    std::vector<int32_t> token_ids, positions, page_ids;
    std::vector<float> cos, sin;
    StepPlan plan;
  };

  static void MakePlan(int32_t sequences, int32_t rows, int32_t context, bool chunked, Plan* p) {
    int32_t next_page = 0;
    for (int32_t s = 0; s < sequences; ++s) {
      p->segments.push_back({.first_row = s * rows,
                             .num_rows = rows,
                             .first_position = context,
                             .slot = s,
                             .first_page = static_cast<int32_t>(p->page_ids.size()),
                             .chunked = chunked});
      for (int32_t i = 0; i * kOpsPageTokens < context + rows; ++i) {
        p->page_ids.push_back(next_page++ % 1024);
      }
      for (int32_t r = 0; r < rows; ++r) {
        p->token_ids.push_back(r);
        p->positions.push_back(context + r);
        p->cos.insert(p->cos.end(), 32, 0.8f);
        p->sin.insert(p->sin.end(), 32, 0.6f);
      }
    }
    p->plan = {.num_rows = sequences * rows,
               .segments = p->segments,
               .token_ids = p->token_ids,
               .positions = p->positions,
               .page_ids = p->page_ids,
               .rope_cos = p->cos,
               .rope_sin = p->sin};
  }

  void DeltaNets() {
    constexpr int64_t kRows = 4096;
    float* const qkvz = Floats(kRows * kDeltaNet.qkvz_dim());
    float* const ba = Floats(kRows * 64);
    float* const weight = Floats(4 * 8192);
    float* const rate = Floats(32);
    float* const norm = Floats(128);
    float* const conv = Floats(32 * kDeltaNet.conv_state_floats());
    float* const states = Floats(32 * 6 * kDeltaNet.state_floats());  // six layers in turn
    float* const qkv = Floats(kRows * 8192);
    float* const gates = Floats(kRows * 64);
    float* const out = Floats(kRows * 4096);
    const auto run = [&](const char* name, int32_t sequences, int32_t rows, bool chunked) {
      Plan plan;
      MakePlan(sequences, rows, 64, chunked, &plan);
      backend_->BeginStep(plan.plan);
      const double total = static_cast<double>(sequences) * rows;
      const CausalConvArgs conv_args = {.shape = kDeltaNet,
                                        .qkvz = qkvz,
                                        .ba = ba,
                                        .weight = weight,
                                        .neg_decay_rate = rate,
                                        .dt_bias = rate,
                                        .conv_states = conv,
                                        .qkv = qkv,
                                        .log_decay = gates,
                                        .beta = gates + kRows * 32};
      const int calls = rows > 1 ? 8 : 60;
      double seconds =
          MedianSeconds(backend_.get(), calls, [&](int) { backend_->CausalConv(conv_args); });
      Report("causal_conv", std::to_string(sequences) + " x " + std::to_string(rows), seconds,
             4 * total * 2 * 8192, 0);
      const auto delta_args = [&](int i) {
        return DeltaNetArgs{.shape = kDeltaNet,
                            .qkv = qkv,
                            .qkvz = qkvz,
                            .log_decay = gates,
                            .beta = gates + kRows * 32,
                            .norm_weight = norm,
                            .states = states + i % 6 * 32 * kDeltaNet.state_floats(),
                            .out = out};
      };
      seconds =
          MedianSeconds(backend_.get(), calls, [&](int i) { backend_->DeltaNet(delta_args(i)); });
      const double state_bytes =
          2.0 * 4 * sequences * static_cast<double>(kDeltaNet.state_floats());
      // Chunked: 4.8 million multiply-adds a chunk and head.
      Report(name, std::to_string(sequences) + " x " + std::to_string(rows), seconds,
             state_bytes + 4 * total * (8192 + 2 * 4096),
             chunked ? total / 64 * 32 * 2 * 4.8e6 : total * 32 * 128 * 128 * 8);
      if (chunked) return;
      seconds = MedianSeconds(backend_.get(), calls,
                              [&](int i) { backend_->ConvDeltaNet(conv_args, delta_args(i)); });
      Report("both at once", std::to_string(sequences) + " x " + std::to_string(rows), seconds,
             state_bytes + 4 * total * (8192 + 4096), 0);
    };
    for (int32_t sequences : {1, 4, 16, 32}) run("delta_net decode", sequences, 1, false);
    for (int32_t rows : {64, 512, 2048}) run("delta_net prefill", 1, rows, true);
    run("delta_net prefill", 4, 512, true);
  }

  void Attentions() {
    constexpr int64_t kRows = 2048;
    float* const q = Floats(kRows * 8192);
    float* const k = Floats(kRows * 512);
    float* const v = Floats(kRows * 512);
    float* const norm = Floats(256);
    float* const keys = Floats(int64_t{1024} * 2 * 256 * 64);
    float* const values = Floats(int64_t{1024} * 2 * 256 * 64);
    float* const out = Floats(kRows * 4096);
    AttentionArgs args = {.shape = kAttention,
                          .q_gate = q,
                          .k = k,
                          .v = v,
                          .q_norm = norm,
                          .k_norm = norm,
                          .key_pages = keys,
                          .value_pages = values,
                          .out = out};
    struct Case {
      int32_t sequences, rows, context;
    };
    for (const Case c : {Case{1, 1, 127},
                         {1, 1, 1023},
                         {1, 1, 8191},
                         {1, 1, 32767},
                         {16, 1, 1023},
                         {16, 1, 4095},
                         {1, 64, 1024},
                         {1, 512, 0},
                         {1, 2048, 0},
                         {1, 2048, 30720}}) {
      Plan plan;
      MakePlan(c.sequences, c.rows, c.context, false, &plan);
      backend_->BeginStep(plan.plan);
      const std::string shape = std::to_string(c.sequences) + " x " + std::to_string(c.rows) +
                                " at " + std::to_string(c.context);
      const int calls = c.rows > 1 ? 4 : 30;
      const double prepare =
          MedianSeconds(backend_.get(), calls, [&](int) { backend_->PrepareAttention(args); });
      Report("prepare_attention", shape, prepare, 4.0 * c.sequences * c.rows * 9216, 0);
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        args.shape.cache_dtype = dtype;
        const double seconds =
            MedianSeconds(backend_.get(), calls, [&](int) { backend_->PagedAttention(args); });
        const double keys_read = static_cast<double>(c.sequences) * (c.context + c.rows);
        Report(dtype == DType::kF32 ? "paged_attention" : "paged_attention bf16", shape, seconds,
               static_cast<double>(DTypeSizeBytes(dtype)) * keys_read * 1024 +
                   4.0 * c.sequences * c.rows * 12288,
               4.0 * 16 * 256 * c.sequences * c.rows * (c.context + c.rows / 2.0));
      }
      args.shape.cache_dtype = DType::kF32;
    }
  }

  void Small() {
    constexpr int64_t kRows = 2048;
    float* const a = Floats(kRows * 2048);
    float* const b = Floats(kRows * 2048);
    float* const c = Floats(kRows * 2048);
    float* const ids = Floats(kRows * 16);
    const SharedBuffer shared = ValueOf(backend_->AllocateShared(kRows * 2048 * 4));
    for (int32_t rows : {1, 16, 2048}) {
      const double n = 4.0 * rows * 2048;
      const auto run = [&](const char* name, double bytes, const std::function<void()>& body) {
        Report(name, std::to_string(rows) + " rows",
               MedianSeconds(backend_.get(), 60, [&](int) { body(); }), bytes, 0);
      };
      run("rms_norm + add", 4 * n, [&] { backend_->RmsNorm(rows, 2048, 1e-6f, a, b, c, c); });
      run("router_topk", n / 4, [&] {
        backend_->RouterTopK(rows, 512, 10, true, a, reinterpret_cast<uint16_t*>(ids), b);
      });
      run("swiglu", n * 3 / 4, [&] { backend_->Swiglu(rows, 512, a, b, c); });
      run("moe_combine", 4 * n, [&] { backend_->MoeCombine(rows, 2048, a, b, ids, c); });
      const SharedCopy copies[] = {{shared, static_cast<size_t>(n)}};
      run("copy_to_host", n, [&] { backend_->CopyToHost(copies); });
      run("copy_to_device", n, [&] {
        backend_->ReleaseToDevice();
        backend_->CopyToDevice(copies);
      });
      const SharedBuffer ids_shared = ValueOf(backend_->AllocateShared(kRows * 10 * 2));
      const SharedBuffer weights_shared = ValueOf(backend_->AllocateShared(kRows * 10 * 4));
      const RouteArgs route = {.num_experts = 512,
                               .top_k = 10,
                               .hidden_size = 2048,
                               .logits = a,
                               .input = reinterpret_cast<const float*>(shared.device),
                               .rows = shared,
                               .ids = ids_shared,
                               .weights = weights_shared};
      const CombineArgs combine = {.hidden_size = 2048,
                                   .routed = shared,
                                   .shared = a,
                                   .gate_logit = ids,
                                   .hidden = b,
                                   .eps = 1e-6f,
                                   .norm_weight = a,
                                   .normed = c};
      RouteArgs rounded = route;
      rounded.rows = ValueOf(backend_->AllocateShared(kRows * 2048 * 2));
      rounded.rows_dtype = DType::kBF16;
      run("route_to_host", n, [&] { backend_->RouteToHost(rows, route); });
      run("route_to_host, bf16", n / 2, [&] { backend_->RouteToHost(rows, rounded); });
      run("combine_from_host", n, [&] {
        backend_->ReleaseToDevice();
        backend_->CombineFromHost(rows, combine);
      });
      // What a layer waits for with experts that need no time: both kernels are queued before.
      run("route, host, combine", n, [&] {
        backend_->RouteToHost(rows, route);
        backend_->CombineFromHost(rows, combine);
        CheckOk(backend_->AwaitHost());
        backend_->ReleaseToDevice();
      });
      run("copy_to_host + wait", n, [&] {
        backend_->CopyToHost(copies);
        CheckOk(backend_->AwaitHost());
      });
    }
  }

  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{1};
};

double Median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// The next tokens of some rows of a step, both ways; they must be the same.
struct Choices {
  static constexpr int32_t kVocab = 151936;
  static constexpr int32_t kSampled = 151669;

  explicit Choices(size_t rows)
      : top(rows * static_cast<size_t>(params.top_k)),
        bounded(rows),
        logits(rows * kVocab),
        tokens(rows) {}

  void Highest(ForwardPass* forward, std::span<const int32_t> rows) {
    const double begin = Now();
    CheckOk(forward->RunHead({.full_rows = {},
                              .top_rows = rows,
                              .num_ids = kSampled,
                              .k = params.top_k,
                              .top = top,
                              .bounded = bounded}));
    const double middle = Now();
    const auto k = static_cast<size_t>(params.top_k);
    for (size_t i = 0; i < rows.size(); ++i) {
      CHECK(bounded[i] == 1);
      tokens[i] = *sampler.ChooseFromTop(params, {}, 1, std::span(top).subspan(i * k, k));
    }
    times[0].push_back(middle - begin);
    times[1].push_back(Now() - middle);
  }

  void All(ForwardPass* forward, std::span<const int32_t> rows) {
    const double begin = Now();
    CheckOk(forward->ComputeLogits(rows, logits));
    const double middle = Now();
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::span<float> row = std::span(logits).subspan(i * kVocab, kVocab);
      CHECK(ValueOf(sampler.Choose(params, {}, 1, row)) == tokens[i]);
    }
    times[2].push_back(middle - begin);
    times[3].push_back(Now() - middle);
  }

  const SamplingParams params = {.temperature = 0.7f, .top_k = 20, .top_p = 0.8f, .seed = 1};
  Sampler sampler{kSampled};
  std::vector<ScoredId> top;
  std::vector<uint8_t> bounded;
  std::vector<float> logits;
  std::vector<int32_t> tokens;
  std::vector<double> times[4];
};

// Experts that answer zeros, at once or one call after the other in given times.
class StandInExperts : public ExpertTransport {
 public:
  StandInExperts(double seconds, double seconds_per_row)
      : seconds_(seconds), seconds_per_row_(seconds_per_row) {}
  absl::Status Dispatch(const Batch& batch) override {
    free_at_ = std::max(free_at_, Now()) + seconds_ + seconds_per_row_ * batch.num_rows;
    answered_at_.push_back(free_at_);
    return absl::OkStatus();
  }
  absl::Status Combine(float*) override {
    while (Now() < answered_at_.front()) continue;
    answered_at_.pop_front();
    return absl::OkStatus();
  }
  void Abandon() override { answered_at_.clear(); }
  absl::Status Ready() const override { return absl::OkStatus(); }
  absl::Status WaitReady(absl::Time) override { return absl::OkStatus(); }

 private:
  const double seconds_;
  const double seconds_per_row_;
  double free_at_ = 0;
  std::deque<double> answered_at_;  // of the batches under way
};

constexpr const char* kConfig = R"({
  "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "dtype": "bfloat16",
  "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "intermediate_size": 5120,
  "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_attention_heads": 16, "num_key_value_heads": 2,
  "head_dim": 256, "partial_rotary_factor": 0.25, "rope_theta": 10000000,
  "max_position_embeddings": 262144, "full_attention_interval": 4, "linear_num_key_heads": 16,
  "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
  "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10,
  "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": true,
  "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false,
  "eos_token_id": 151645
})";

// A checkpoint of the trunk's tensors alone, bf16: small random values.
void WriteTrunk(const std::string& directory, const ModelConfig& config) {
  std::string header = "{";
  uint64_t end = 0;
  for (const TensorSpec& spec : TrunkTensors(config)) {
    const uint64_t bytes = static_cast<uint64_t>(spec.shape.num_elements()) * 2;
    header += "\"" + spec.name + "\":{\"dtype\":\"BF16\",\"shape\":" + spec.shape.ToString() +
              ",\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + bytes) +
              "]},";
    end += bytes;
  }
  header.back() = '}';
  while (header.size() % 64 != 56) header += ' ';
  const std::string path = directory + "/model.safetensors";
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(file >= 0);
  const uint64_t length = header.size();
  CHECK(write(file, &length, 8) == 8);
  CHECK(write(file, header.data(), header.size()) == static_cast<ssize_t>(header.size()));
  std::vector<uint16_t> block(4 << 20);
  std::mt19937 random(3);
  for (uint16_t& value : block) {
    // Sign, an exponent of 2^-8 to 2^-5, any mantissa.
    value = static_cast<uint16_t>((random() & 0x8000u) | ((119 + random() % 4) << 7) |
                                  (random() & 0x7fu));
  }
  for (uint64_t at = 0; at < end;) {
    const uint64_t some = std::min<uint64_t>(block.size() * 2, end - at);
    CHECK(write(file, block.data(), some) == static_cast<ssize_t>(some));
    at += some;
  }
  close(file);
}

// What the card's memory holds, this process's CUDA context included: nobody else is on it.
double UsedGigabytes() {
  size_t free = 0;
  size_t total = 0;
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  return static_cast<double>(total - free) * 1e-9;
}

// Bytes per second from pinned memory to the device.
double MeasureLink() {
  constexpr size_t kBytes = size_t{256} << 20;
  void* from = nullptr;
  void* to = nullptr;
  CHECK(cudaHostAlloc(&from, kBytes, 0) == cudaSuccess && cudaMalloc(&to, kBytes) == cudaSuccess);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double start = Now();
    CHECK(cudaMemcpy(to, from, kBytes, cudaMemcpyHostToDevice) == cudaSuccess);
    best = std::max(best, kBytes / (Now() - start) * 1e-9);
  }
  cudaFreeHost(from);
  cudaFree(to);
  return best;
}

struct StepCase {
  const char* name;
  TrunkFormat format;
  DType kv_dtype;
  int32_t max_rows;
  int32_t num_slots;
  int32_t num_pages;
  int32_t halved_rows = 0;
  double expert_seconds = 0;
  double expert_seconds_per_row = 0;
};

class StepRun {
 public:
  StepRun(const ModelConfig& config, const Checkpoint& checkpoint, const StepCase& c)
      : case_(c),
        backend_(ValueOf(CreateCudaBackend({}))),
        experts_(c.expert_seconds, c.expert_seconds_per_row) {
    const double before = UsedGigabytes();
    const double start = Now();
    decoder_ =
        ValueOf(Decoder::Create(config, OptionsOf(c), checkpoint, backend_.get(), &experts_));
    const double load = Now() - start;
    const TrunkWeightSizes kept = TrunkWeightSizesOf(checkpoint, config, c.format);
    read_ = static_cast<double>(kept.matrix_bytes() + kept.vector_bytes());
    const double stored = static_cast<double>(TrunkWeightSizesOf(checkpoint, config).file_bytes);
    std::printf(
        "%s: loaded %.2f GB in %.2f s, %.1f GB/s; memory in use %.3f GB, of it %.3f before the "
        "trunk (context, staging)\n",
        c.name, stored * 1e-9, load, stored / load * 1e-9, UsedGigabytes(), before);
    const double loaded = UsedGigabytes();
    std::printf("  %-16s %8.3f GB, the trunk took %.3f\n", "planned",
                static_cast<double>(TrunkArena(config, OptionsOf(c), kept).bytes()) * 1e-9,
                loaded - before);
    for (const DecoderMemory m = Decoder::Plan(config, OptionsOf(c), *backend_);
         const auto& [name, bytes] :
         {std::pair("weights", kept.matrix_bytes() + kept.vector_bytes()),
          {"KV pages", m.kv_cache_bytes},
          {"recurrent state", m.recurrent_state_bytes},
          {"activations", m.activation_bytes},
          {"scratch", m.scratch_bytes}}) {
      std::printf("  %-16s %8.3f GB\n", name, static_cast<double>(bytes) * 1e-9);
    }
  }

  // On `ways` GPUs.
  StepRun(const ModelConfig& config, const Checkpoint& checkpoint, const StepCase& c, int32_t ways)
      : case_(c), group_(ValueOf(CreateNcclGroup(ways))), experts_(0, 0) {
    threads_ = std::make_unique<RankThreads>(ways, absl::Milliseconds(5));
    backends_.resize(static_cast<size_t>(ways));
    threads_->Run([&](int32_t rank) {
      backends_[static_cast<size_t>(rank)] =
          ValueOf(CreateCudaBackend({.device = rank, .collective = group_->rank(rank)}));
    });
    const double before = UsedGigabytes();
    const double start = Now();
    decoder_ = ValueOf(ParallelDecoder::Create(config, OptionsOf(c), checkpoint, backends_,
                                               threads_.get(), &experts_));
    const TrunkWeightSizes kept = TrunkWeightSizesOf(checkpoint, config, c.format, ways);
    read_ = static_cast<double>(kept.matrix_bytes() + kept.vector_bytes());
    std::printf(
        "%s, %d GPUs: loaded in %.2f s; memory in use on the first %.2f GB, of it %.2f before the "
        "trunk (context, NCCL, staging); weights %.2f GB a GPU\n",
        c.name, ways, Now() - start, UsedGigabytes(), before, read_ * 1e-9);
  }

  void Run(const char* name, int32_t sequences, int32_t rows, int32_t context) {
    std::vector<int32_t> tokens(static_cast<size_t>(sequences * rows)), wanted;
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 151936);
    std::vector<std::vector<int32_t>> pages;
    std::vector<StepSegment> segments;
    int32_t next = 0;
    for (int32_t s = 0; s < sequences; ++s) {
      pages.emplace_back();
      for (int32_t p = 0; p * kPageTokens < context + rows; ++p) {
        pages.back().push_back(next++ % case_.num_pages);
      }
    }
    for (int32_t s = 0; s < sequences; ++s) {
      segments.push_back({.first_row = s * rows,
                          .num_rows = rows,
                          .first_position = context,
                          .slot = s,
                          .pages = pages[static_cast<size_t>(s)],
                          .chunked = rows > 1});
      wanted.push_back((s + 1) * rows - 1);
    }
    std::vector<double> times;
    Choices choices(wanted.size());
    for (int i = 0; i < (case_.expert_seconds > 0 ? 3 : rows > 1 ? 5 : 25); ++i) {
      const double begin = Now();
      CheckOk(decoder_->Forward({.step_id = i, .token_ids = tokens, .segments = segments}));
      choices.Highest(decoder_.get(), wanted);
      times.push_back(Now() - begin);
      choices.All(decoder_.get(), wanted);
    }
    const double seconds = Median(times);
    std::printf(
        "%-8s %2d x %4d at %5d: %8.3f ms a step, %8.0f tokens/s, weights %5.0f GB/s; of it logits "
        "and choice %.3f and %.3f, from all logits %.3f and %.3f\n",
        name, sequences, rows, context, seconds * 1e3, sequences * rows / seconds,
        read_ / seconds * 1e-9, Median(choices.times[0]) * 1e3, Median(choices.times[1]) * 1e3,
        Median(choices.times[2]) * 1e3, Median(choices.times[3]) * 1e3);
    std::fflush(stdout);
  }

 private:
  static DecoderOptions OptionsOf(const StepCase& c) {
    return {.max_rows = c.max_rows,
            .num_slots = c.num_slots,
            .num_pages = c.num_pages,
            .max_logits_rows = c.num_slots,
            .max_context_tokens = 32768,
            .trunk_format = c.format,
            .kv_dtype = c.kv_dtype,
            .expert_activations = DType::kBF16,
            .halved_rows = c.halved_rows};
  }

  const StepCase case_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CollectiveGroup> group_;  // these three: of several GPUs
  std::unique_ptr<RankThreads> threads_;
  std::vector<std::unique_ptr<Backend>> backends_;
  StandInExperts experts_;
  std::unique_ptr<ForwardPass> decoder_;
  double read_ = 0;  // bytes of a step's weights
};

// The same steps on one GPU and on as many as there are.
void ParallelSteps(const ModelConfig& config, const Checkpoint& checkpoint) {
  for (const StepCase& c :
       {StepCase{"bf16 trunk", TrunkFormat::kBf16, DType::kBF16, 2048, 16, 1024},
        {"int8 trunk", TrunkFormat::kInt8, DType::kBF16, 2048, 16, 1024}}) {
    for (int32_t ways = 1; ways <= std::min(CudaDeviceCount(), 8); ways *= 2) {
      const auto made = ways == 1 ? std::make_unique<StepRun>(config, checkpoint, c)
                                  : std::make_unique<StepRun>(config, checkpoint, c, ways);
      StepRun& run = *made;
      for (int32_t sequences : {1, 4, 16}) run.Run("decode", sequences, 1, 128);
      run.Run("decode", 1, 1, 32767);
      run.Run("prefill", 1, 512, 0);
      run.Run("prefill", 1, 2048, 0);
    }
  }
}

// Prompts with the experts' part of the time, on one GPU.
void HalvedSteps(const ModelConfig& config, const Checkpoint& checkpoint) {
  for (const int32_t halved_rows : {0, 128}) {
    StepRun run(config, checkpoint,
                {halved_rows == 0 ? "undivided" : "halves", TrunkFormat::kBf16, DType::kBF16, 4159,
                 4, 512, halved_rows, 12e-3, 12e-6});
    for (const int32_t rows : {512, 1024, 2048, 3072, 4096}) run.Run("prefill", 1, rows, 0);
    run.Run("prefill", 1, 4096, 4096);
  }
}

// As small as it goes: one context of 32,768 tokens, steps of 512 rows, two sequences.
void SmallSteps(const ModelConfig& config, const Checkpoint& checkpoint) {
  for (const StepCase& c :
       {StepCase{"small, bf16 trunk", TrunkFormat::kBf16, DType::kBF16, 512, 2, 512},
        {"small, int8 trunk", TrunkFormat::kInt8, DType::kBF16, 512, 2, 512}}) {
    StepRun run(config, checkpoint, c);
    run.Run("prefill", 1, 512, 0);
    run.Run("decode", 1, 1, 128);
    run.Run("decode", 1, 1, 32767);
    std::printf("memory in use after all steps: %.3f GB\n", UsedGigabytes());
  }
  // As it is served in tests/gpu/serve.sh.
  for (const StepCase& c :
       {StepCase{"served, bf16 trunk", TrunkFormat::kBf16, DType::kBF16, 2111, 4, 512, 2048},
        {"served, int8 trunk", TrunkFormat::kInt8, DType::kBF16, 2111, 4, 512, 2048}}) {
    StepRun run(config, checkpoint, c);
    run.Run("prefill", 1, 2048, 0);
    for (int32_t sequences : {1, 4}) run.Run("decode", sequences, 1, 128);
    std::printf("memory in use after all steps: %.3f GB\n", UsedGigabytes());
  }
}

enum class StepKind { kAll, kFew, kParallel, kHalves, kSmall };

// kFew: a handful of steps of each kind, for a profiler.
void Steps(const std::string& parent, StepKind kind) {
  const bool few = kind == StepKind::kFew;
  const std::string directory = parent + "/banyan-cuda-bench-" + std::to_string(getpid());
  std::filesystem::create_directory(directory);
  std::string text = kConfig;
  if (kind == StepKind::kHalves) {  // seconds a step otherwise
    constexpr std::string_view kLayers = "\"num_hidden_layers\": 48";
    text.replace(text.find(kLayers), kLayers.size(), "\"num_hidden_layers\": 12");
  }
  std::ofstream(directory + "/config.json") << text;
  const ModelConfig config = ValueOf(LoadModelConfig(directory));
  const double start = Now();
  WriteTrunk(directory, config);
  std::printf("wrote the trunk in %.1f s; link %.1f GB/s\n", Now() - start, MeasureLink());
  if (kind == StepKind::kParallel) {
    ParallelSteps(config, *ValueOf(Checkpoint::Open(directory)));
  } else if (kind == StepKind::kHalves) {
    HalvedSteps(config, *ValueOf(Checkpoint::Open(directory)));
  } else if (kind == StepKind::kSmall) {
    SmallSteps(config, *ValueOf(Checkpoint::Open(directory)));
  } else if (few) {
    const auto checkpoint = ValueOf(Checkpoint::Open(directory));
    for (const StepCase& c :
         {StepCase{"bf16 trunk", TrunkFormat::kBf16, DType::kBF16, 2048, 16, 1024},
          {"int8 trunk", TrunkFormat::kInt8, DType::kBF16, 2048, 16, 1024}}) {
      StepRun run(config, *checkpoint, c);
      run.Run("decode", 1, 1, 128);
      run.Run("decode", 16, 1, 128);
      for (const int32_t rows : {512, 2048}) run.Run("prefill", 1, rows, 0);
    }
  } else {
    const auto checkpoint = ValueOf(Checkpoint::Open(directory));
    const StepCase cases[] = {
        {"bf16 trunk, f32 KV", TrunkFormat::kBf16, DType::kF32, 2048, 16, 1024},
        {"bf16 trunk, bf16 KV", TrunkFormat::kBf16, DType::kBF16, 2048, 16, 1024},
        {"int8 trunk, bf16 KV", TrunkFormat::kInt8, DType::kBF16, 2048, 16, 1024}};
    for (const StepCase& c : cases) {
      StepRun run(config, *checkpoint, c);
      for (int32_t sequences : {1, 2, 4, 8, 16}) run.Run("decode", sequences, 1, 128);
      run.Run("decode", 1, 1, 8191);
      run.Run("decode", 1, 1, 32767);
      run.Run("decode", 16, 1, 4095);
      run.Run("prefill", 1, 64, 0);
      run.Run("prefill", 1, 512, 0);
      run.Run("prefill", 1, 2048, 0);
      if (c.kv_dtype == DType::kBF16) run.Run("prefill", 1, 2048, 30720);
      std::printf("memory in use after all steps: %.2f GB\n", UsedGigabytes());
    }
    SmallSteps(config, *checkpoint);
  }
  std::filesystem::remove_all(directory);
}

int Main(int argc, char** argv) {
  bool ops = false;
  bool linear = false;
  bool top = false;
  bool delta = false;
  bool step = false;
  bool few = false;
  bool parallel = false;
  bool halves = false;
  bool small = false;
  std::string directory = "/dev/shm";
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "ops") {
      ops = true;
    } else if (arg == "linear") {
      linear = true;
    } else if (arg == "top") {
      top = true;
    } else if (arg == "delta") {
      delta = true;
    } else if (arg == "step") {
      step = true;
    } else if (arg == "short") {
      few = true;
    } else if (arg == "parallel") {
      parallel = true;
    } else if (arg == "halves") {
      halves = true;
    } else if (arg == "small") {
      small = true;
    } else if (arg.rfind("--directory=", 0) == 0) {
      directory = arg.substr(std::strlen("--directory="));
    } else {
      std::fprintf(stderr, "cuda_bench: unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  const auto monitor = cuda::GpuMonitor::Open(0);
  const auto used = [&monitor] {
    if (!monitor.ok()) return 0.0;
    const auto usage = (*monitor)->Read();
    return usage.ok() ? static_cast<double>(usage->used_bytes) * 1e-9 : 0;
  };
  const double before = used();
  const absl::StatusOr<cuda::DeviceFacts> facts = cuda::OpenDevice(0);
  if (!facts.ok()) {
    std::fprintf(stderr, "%s\n", facts.status().ToString().c_str());
    return 2;
  }
  std::printf("context: %.3f GB, in use before it %.3f\n", used() - before, before);
  copy_gbps = MeasureCopy();
  std::printf("%s, compute capability %d.%d, %d multiprocessors; copy %.0f GB/s\n",
              facts->name.c_str(), facts->compute_major, facts->compute_minor, facts->num_sms,
              copy_gbps);
  const bool all = !(ops || linear || delta || top || step || few || parallel || halves || small);
  if (ops || all) Ops().Run();
  if (linear) Ops().RunLinears();
  if (delta) Ops().RunDeltaNets();
  if (top) Ops().Tops();
  if (step || all) Steps(directory, StepKind::kAll);
  if (few) Steps(directory, StepKind::kFew);
  if (parallel) Steps(directory, StepKind::kParallel);
  if (halves) Steps(directory, StepKind::kHalves);
  if (small) Steps(directory, StepKind::kSmall);
  return 0;
}

}  // namespace
}  // namespace banyan::trunk

int main(int argc, char** argv) { return banyan::trunk::Main(argc, argv); }
