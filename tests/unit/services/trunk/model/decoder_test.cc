// What the golden tests do not reach: dense layers, tied embeddings, budgets, refusals.
#include "services/trunk/model/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/quant/bf16.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "tests/fakes/backends.h"
#include "tests/fakes/model_harness.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/source_dir.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::trunk {
namespace {

using test::ModelHarness;
using test::TestCheckpoint;
using test::TestSequence;
using test::TestTensor;

std::string TinyDirectory() { return test::SourceDir() + "/tests/data/tiny"; }

void Replace(std::string* text, const std::string& from, const std::string& to) {
  const size_t at = text->find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text->replace(at, from.size(), to);
}

std::vector<float> ValuesOf(const TestTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    BF16 value;
    std::memcpy(&value, tensor.bytes.data() + 2 * i, 2);
    values[i] = ToFloat(value);
  }
  return values;
}

const std::vector<int32_t> kPrompt = {5, 17, 1999, 3, 3, 42, 0, 2047};

TEST(DecoderTest, TiedWordEmbeddingsUseTheEmbeddingAsHead) {
  test::TempDir temp;
  TestCheckpoint model = TestCheckpoint::Read(TinyDirectory());
  const std::string embedding = model.Find("model.embed_tokens.weight")->bytes;
  model.Find("lm_head.weight")->bytes = embedding;
  test::TempDir untied;
  model.Write(untied.path());
  model.Remove("lm_head.weight");
  Replace(&model.texts["config.json"], "\"tie_word_embeddings\": false",
          "\"tie_word_embeddings\": true");
  model.Write(temp.path());
  const auto run = [](const std::string& directory) {
    ModelHarness harness({.directory = directory});
    TestSequence sequence = harness.NewSequence();
    return harness.Run({{&sequence, kPrompt, true}});
  };
  EXPECT_EQ(run(temp.path()), run(untied.path()));
}

// A dense layer with the shared expert's weights is what the MoE block computes when the routed
// experts give nothing and the shared expert's gate is wide open.
TEST(DecoderTest, DenseLayersComputeAPlainFfn) {
  TestCheckpoint model = TestCheckpoint::Read(TinyDirectory());
  const std::string layer = "model.layers.1.mlp.";
  for (int e = 0; e < 16; ++e) {
    std::string& down =
        model.Find(layer + "experts." + std::to_string(e) + ".down_proj.weight")->bytes;
    down.assign(down.size(), '\0');
  }
  test::TempDir moe;
  model.Write(moe.path());

  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    model.Find(layer + "shared_expert." + name + ".weight")->name = layer + name + ".weight";
  }
  model.Remove(layer + "gate.weight");
  model.Remove(layer + "shared_expert_gate.weight");
  for (int e = 0; e < 16; ++e) {
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
      model.Remove(layer + "experts." + std::to_string(e) + "." + name + ".weight");
    }
  }
  Replace(&model.texts["config.json"], "\"mlp_only_layers\": []", "\"mlp_only_layers\": [1]");
  Replace(&model.texts["config.json"], "\"intermediate_size\": 5632", "\"intermediate_size\": 64");
  test::TempDir dense;
  model.Write(dense.path());

  ModelHarness a({.directory = moe.path(), .observe = true});
  ModelHarness b({.directory = dense.path(), .observe = true});
  ASSERT_EQ(b.config().mlps[1], MlpKind::kDense);
  TestSequence sa = a.NewSequence();
  TestSequence sb = b.NewSequence();
  a.Run({{&sa, kPrompt, true}});
  b.Run({{&sb, kPrompt, true}});
  const auto& la = a.observer().layers[1];
  const auto& lb = b.observer().layers[1];
  ASSERT_EQ(la.mixer, lb.mixer);
  EXPECT_TRUE(lb.expert_ids.empty());
  // Row by row, the MoE block's step is sigmoid(gate . x) times the dense one's.
  const std::vector<float> gate =
      ValuesOf(*TestCheckpoint::Read(moe.path()).Find(layer + "shared_expert_gate.weight"));
  const std::vector<float> norm = ValuesOf(*TestCheckpoint::Read(moe.path())
                                                .Find("model.layers.1.post_attention_layernorm"
                                                      ".weight"));
  const size_t hidden = gate.size();
  for (size_t row = 0; row < kPrompt.size(); ++row) {
    const float* u = la.mixer.data() + row * hidden;
    double squares = 0;
    for (size_t i = 0; i < hidden; ++i) squares += static_cast<double>(u[i]) * u[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-6);
    double logit = 0;
    for (size_t i = 0; i < hidden; ++i) logit += gate[i] * u[i] * scale * (1.0 + norm[i]);
    const double open = 1 / (1 + std::exp(-logit));
    for (size_t i = row * hidden; i < (row + 1) * hidden; ++i) {
      EXPECT_NEAR(la.hidden[i] - la.mixer[i], open * (lb.hidden[i] - lb.mixer[i]), 1e-5);
    }
  }
}

// Where both are multiplied alike; tiles take bf16 alone.
TEST(DecoderTest, F32TensorsGiveWhatBf16TensorsOfTheSameValuesGive) {
  TestCheckpoint model = TestCheckpoint::Read(TinyDirectory());
  for (test::TestShard& shard : model.shards) {
    for (TestTensor& tensor : shard.tensors) {
      const std::vector<float> values = ValuesOf(tensor);
      tensor.dtype = "F32";
      tensor.bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * 4);
    }
  }
  test::TempDir temp;
  model.Write(temp.path());
  for (const std::string& backend : test::AvailableBackends()) {
    if (test::HasTiles(backend)) continue;
    ModelHarness bf16({.directory = TinyDirectory(), .backend = backend});
    ModelHarness f32({.directory = temp.path(), .backend = backend});
    TestSequence a = bf16.NewSequence();
    TestSequence b = f32.NewSequence();
    EXPECT_EQ(bf16.Run({{&a, kPrompt, true}}), f32.Run({{&b, kPrompt, true}})) << backend;
  }
}

// Experts that keep what they are given, in memory that they were lent or in the decoder's own.
class RecordingExperts : public ExpertTransport {
 public:
  struct Call {
    DType dtype;
    std::vector<std::byte> rows;
    std::vector<uint16_t> ids;
    std::vector<float> weights;
  };
  RecordingExperts(size_t hidden_size, bool takes_memory)
      : hidden_size_(hidden_size), takes_memory_(takes_memory) {}

  void LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks, size_t bytes) override {
    EXPECT_EQ(blocks.size(), 2u);
    EXPECT_GE(bytes, 40 * hidden_size_ * sizeof(BF16));
    lent_ = std::move(blocks);
  }
  std::byte* TakeRowsMemory() override {
    taken_ = nullptr;
    if (takes_memory_ && !lent_.empty()) taken_ = lent_[calls.size() % lent_.size()].get();
    return taken_;
  }
  absl::Status Dispatch(const Batch& batch) override {
    const auto rows = static_cast<size_t>(batch.num_rows);
    const auto chosen = rows * static_cast<size_t>(batch.top_k);
    const auto* const bytes = static_cast<const std::byte*>(batch.activations);
    if (bytes == taken_) ++num_in_lent_memory;
    calls.push_back({batch.activations_dtype,
                     {bytes, bytes + rows * hidden_size_ * DTypeSizeBytes(batch.activations_dtype)},
                     {batch.expert_ids, batch.expert_ids + chosen},
                     {batch.weights, batch.weights + chosen}});
    sums_ = rows * hidden_size_;
    return absl::OkStatus();
  }
  absl::Status Combine(float* out) override {
    std::fill_n(out, sums_, 0.0f);
    return absl::OkStatus();
  }
  void Abandon() override {}
  absl::Status Ready() const override { return absl::OkStatus(); }
  absl::Status WaitReady(absl::Time) override { return absl::OkStatus(); }

  std::vector<Call> calls;
  int num_in_lent_memory = 0;

 private:
  const size_t hidden_size_;
  const bool takes_memory_;
  std::vector<std::shared_ptr<std::byte>> lent_;
  std::byte* taken_ = nullptr;
  size_t sums_ = 0;
};

// To experts that answer nothing the rows of all layers are the same but for the rounding.
TEST(DecoderTest, RowsReachTheExpertsInTheTypeAskedFor) {
  const ModelConfig config = *LoadModelConfig(TinyDirectory());
  const auto checkpoint = *Checkpoint::Open(TinyDirectory());
  const auto hidden = static_cast<size_t>(config.hidden_size);
  const bool on_cpu = test::IsCpu(ModelHarness::DefaultBackend());
  const auto run = [&](DType dtype, bool takes_memory) {
    WorkerPool pool({.num_threads = 1});
    const auto backend = test::MakeBackend(ModelHarness::DefaultBackend(), &pool);
    RecordingExperts experts(hidden, takes_memory);
    const auto decoder = Decoder::Create(config, {.num_pages = 4, .expert_activations = dtype},
                                         *checkpoint, backend.get(), &experts);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    const std::vector<int32_t> pages = {2};
    // A prompt, a row that decodes, the same shape again (which a GPU has recorded), another
    // prompt.
    int32_t position = 0;
    for (const int32_t rows : {40, 1, 1, 7}) {
      const std::vector<int32_t> tokens(kPrompt.begin(), kPrompt.begin() + std::min(rows, 8));
      std::vector<int32_t> ids;
      while (ids.size() < static_cast<size_t>(rows)) {
        ids.push_back(tokens[ids.size() % tokens.size()]);
      }
      const StepSegment segments[] = {{.first_row = 0,
                                       .num_rows = rows,
                                       .first_position = position,
                                       .slot = 0,
                                       .pages = pages,
                                       .chunked = false}};
      EXPECT_TRUE((*decoder)->Forward({.token_ids = ids, .segments = segments}).ok());
      position += rows;
    }
    // All rows, but for what a GPU records; none where the trunk itself computes on what it sends.
    const int layers = CountMlps(config, MlpKind::kMoe);
    const bool lent = takes_memory && !(on_cpu && dtype == DType::kF32);
    EXPECT_EQ(experts.num_in_lent_memory, lent ? layers * (on_cpu ? 4 : 2) : 0);
    return experts.calls;
  };
  const auto f32 = run(DType::kF32, true);
  const auto bf16 = run(DType::kBF16, true);
  const auto own = run(DType::kBF16, false);
  ASSERT_EQ(own.size(), bf16.size());
  for (size_t i = 0; i < own.size(); ++i) EXPECT_EQ(own[i].rows, bf16[i].rows) << i;
  ASSERT_EQ(f32.size(), 4u * static_cast<size_t>(CountMlps(config, MlpKind::kMoe)));
  ASSERT_EQ(bf16.size(), f32.size());
  for (size_t i = 0; i < f32.size(); ++i) {
    EXPECT_EQ(f32[i].dtype, DType::kF32);
    ASSERT_EQ(bf16[i].dtype, DType::kBF16);
    EXPECT_EQ(bf16[i].ids, f32[i].ids);
    EXPECT_EQ(bf16[i].weights, f32[i].weights);
    ASSERT_EQ(bf16[i].rows.size() * 2, f32[i].rows.size());
    std::vector<float> values(f32[i].rows.size() / sizeof(float));
    std::memcpy(values.data(), f32[i].rows.data(), f32[i].rows.size());
    std::vector<BF16> rounded;
    for (const float value : values) rounded.push_back(ToBF16(value));
    EXPECT_EQ(std::memcmp(bf16[i].rows.data(), rounded.data(), bf16[i].rows.size()), 0) << i;
  }
}

class CreateTest : public testing::Test {
 protected:
  absl::Status Create(const DecoderOptions& options, const std::string& directory) {
    const auto config = LoadModelConfig(directory);
    const auto checkpoint = Checkpoint::Open(directory);
    EXPECT_TRUE(config.ok() && checkpoint.ok());
    WorkerPool pool({.num_threads = 1});
    const auto backend = CreateCpuBackend({}, &pool);
    test::LocalTransport experts(**checkpoint, *config);
    return Decoder::Create(*config, options, **checkpoint, backend->get(), &experts).status();
  }
};

TEST_F(CreateTest, RefusesOptionsWithTheNumbers) {
  EXPECT_EQ(Create({.num_pages = 0}, TinyDirectory()),
            absl::InvalidArgumentError("decoder: num_pages is 0, expected at least 1"));
  EXPECT_EQ(Create({.num_pages = 1, .max_context_tokens = 5000}, TinyDirectory()),
            absl::InvalidArgumentError("decoder: max_context_tokens is 5000, expected 0 to 4096 "
                                       "(max_position_embeddings)"));
}

TEST_F(CreateTest, NamesTheTensorThatIsMissingOrMisshapen) {
  TestCheckpoint model = TestCheckpoint::Read(TinyDirectory());
  model.Find("model.layers.2.linear_attn.A_log")->shape = {2, 2};
  test::TempDir temp;
  model.Write(temp.path());
  const std::string misshapen(Create({.num_pages = 4}, temp.path()).message());
  EXPECT_NE(misshapen.find("model.layers.2.linear_attn.A_log"), std::string::npos) << misshapen;
  EXPECT_NE(misshapen.find("[2, 2]"), std::string::npos) << misshapen;
  EXPECT_NE(misshapen.find("[4]"), std::string::npos) << misshapen;

  model.Remove("model.layers.2.linear_attn.A_log");
  test::TempDir without;
  model.Write(without.path());
  const absl::Status missing = Create({.num_pages = 4}, without.path());
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.message()).find("linear_attn.A_log"), std::string::npos);
}

TEST(DecoderPlanTest, CountsWhatTheShapesSay) {
  const auto config = LoadModelConfig(TinyDirectory());
  ASSERT_TRUE(config.ok());
  WorkerPool pool({.num_threads = 2});
  const auto backend = CreateCpuBackend({}, &pool);
  const DecoderOptions options = {.max_rows = 64, .num_slots = 3, .num_pages = 10};
  const DecoderMemory memory = Decoder::Plan(*config, options, **backend);
  // One attention layer: 2 x 10 pages x 2 heads x 64 dims x 64 tokens, f32.
  EXPECT_EQ(memory.kv_cache_bytes, 2u * 10 * 2 * 64 * 64 * 4);
  // Three DeltaNet layers: 3 slots x (4 heads x 32 x 32 + 3 columns x 256 channels), f32.
  EXPECT_EQ(memory.recurrent_state_bytes, 3u * 3 * (4 * 32 * 32 + 3 * 256) * 4);
  EXPECT_GT(memory.activation_bytes, 0u);
  EXPECT_GT(memory.scratch_bytes, 0u);
  EXPECT_GT(memory.step_table_bytes, 0u);
  // Twice the pages: twice the cache, nothing else.
  DecoderOptions more = options;
  more.num_pages = 20;
  const DecoderMemory doubled = Decoder::Plan(*config, more, **backend);
  EXPECT_EQ(doubled.allocated_bytes() - memory.allocated_bytes(), memory.kv_cache_bytes);
}

}  // namespace
}  // namespace banyan::trunk
