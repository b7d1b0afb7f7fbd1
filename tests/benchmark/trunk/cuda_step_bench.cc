// cuda_bench's whole steps: a trunk of random weights, experts that answer zeros.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
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
#include "services/trunk/sampling/sampler.h"
#include "tests/benchmark/trunk/cuda_bench.h"
#include "tests/benchmark/trunk/kernel_timeline.h"

namespace banyan::trunk {
namespace {

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
      ForgetKernels();
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

// Decoding, and where the last step's time went.
void Timelines(const ModelConfig& config, const Checkpoint& checkpoint) {
  for (const StepCase& c :
       {StepCase{"bf16 trunk", TrunkFormat::kBf16, DType::kBF16, 2048, 16, 1024},
        {"int8 trunk", TrunkFormat::kInt8, DType::kBF16, 2048, 16, 1024}}) {
    StepRun run(config, checkpoint, c);
    for (const int32_t sequences : {1, 4, 16}) {
      run.Run("decode", sequences, 1, 128);
      PrintKernels();
    }
  }
}

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

}  // namespace

void BenchmarkSteps(const std::string& parent, StepKind kind) {
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
  } else if (kind == StepKind::kTimeline) {
    Timelines(config, *ValueOf(Checkpoint::Open(directory)));
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

}  // namespace banyan::trunk
