// cuda_bench's single operations at the full model's geometry.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/check.h"
#include "services/trunk/ops/cuda/cuda_backend.h"
#include "services/trunk/ops/ops.h"
#include "tests/benchmark/trunk/cuda_bench.h"

namespace banyan::trunk {
namespace {

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

class Ops {
 public:
  explicit Ops(double copy_gbps) : copy_gbps_(copy_gbps), backend_(ValueOf(CreateCudaBackend({}))) {
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

  void Report(const char* name, const std::string& shape, double seconds, double bytes,
              double flops) const {
    std::printf("%-22s %-26s %9.1f us %8.0f GB/s %5.1f %% of copy %8.1f TFLOP/s\n", name,
                shape.c_str(), seconds * 1e6, bytes / seconds * 1e-9,
                bytes / seconds * 1e-9 / copy_gbps_ * 100, flops / seconds * 1e-12);
    std::fflush(stdout);
  }

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

  const double copy_gbps_;
  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{1};
};

}  // namespace

void BenchmarkOps(OpsKind kind, double copy_gbps) {
  Ops ops(copy_gbps);
  switch (kind) {
    case OpsKind::kAll:
      return ops.Run();
    case OpsKind::kLinear:
      return ops.RunLinears();
    case OpsKind::kDelta:
      return ops.RunDeltaNets();
    case OpsKind::kTop:
      return ops.Tops();
  }
}

}  // namespace banyan::trunk
