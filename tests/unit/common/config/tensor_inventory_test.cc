#include "common/config/tensor_inventory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using test::MakeTensor;
using test::TempDir;
using test::TestCheckpoint;
using ::testing::HasSubstr;

constexpr char kTiny[] = BANYAN_SOURCE_DIR "/tests/data/tiny";
constexpr char kTinyFused[] = BANYAN_SOURCE_DIR "/tests/data/tiny-fused";
constexpr char kDemo[] = BANYAN_SOURCE_DIR "/deploy/models/demo";

absl::StatusOr<CheckpointSummary> Check(const TestCheckpoint& made) {
  const TempDir temp;
  made.Write(temp.path());
  const auto checkpoint = Checkpoint::Open(temp.path());
  if (!checkpoint.ok()) return checkpoint.status();
  const auto config = LoadModelConfig(temp.path());
  if (!config.ok()) return config.status();
  return CheckComplete(**checkpoint, *config);
}

// The message after "DIR: checkpoint and config.json disagree: ".
std::string Disagreement(const TestCheckpoint& made, absl::StatusCode code) {
  const auto summary = Check(made);
  EXPECT_EQ(summary.status().code(), code) << summary.status();
  const std::string message(ToStd(summary.status().message()));
  constexpr std::string_view kIntro = "checkpoint and config.json disagree: ";
  const size_t at = message.find(kIntro);
  return at == std::string::npos ? message : message.substr(at + kIntro.size());
}

TEST(TensorInventory, The80B) {
  // 74,391 tensors without MTP; 159.3 GB in bf16 (checkpoint spec).
  nlohmann::json json = nlohmann::json::parse(test::ReadFile(std::string(kTiny) + "/config.json"));
  for (const auto& [key, value] :
       std::map<std::string, int>{{"vocab_size", 151936},
                                  {"hidden_size", 2048},
                                  {"num_hidden_layers", 48},
                                  {"num_attention_heads", 16},
                                  {"num_key_value_heads", 2},
                                  {"head_dim", 256},
                                  {"linear_num_key_heads", 16},
                                  {"linear_num_value_heads", 32},
                                  {"linear_key_head_dim", 128},
                                  {"linear_value_head_dim", 128},
                                  {"num_experts", 512},
                                  {"num_experts_per_tok", 10},
                                  {"moe_intermediate_size", 512},
                                  {"shared_expert_intermediate_size", 512}}) {
    json[key] = value;
  }
  json.erase("layer_types");
  const auto config = ParseModelConfig(json.dump(), "80b");
  ASSERT_TRUE(config.ok()) << config.status();
  std::vector<TensorSpec> all = TrunkTensors(*config);
  for (int32_t layer = 0; layer < 48; ++layer) {
    const auto experts = RoutedExpertTensors(*config, layer, ExpertNaming::kPerExpert);
    EXPECT_EQ(experts.size(), 512u * 3);
    all.insert(all.end(), experts.begin(), experts.end());
    const auto fused = RoutedExpertTensors(*config, layer, ExpertNaming::kFused);
    ASSERT_EQ(fused.size(), 2u);
    EXPECT_EQ(fused[0].shape, (Shape{512, 1024, 2048}));
    EXPECT_EQ(fused[1].shape, (Shape{512, 2048, 512}));
  }
  EXPECT_EQ(all.size(), 74391u);
  std::set<std::string> names;
  int64_t parameters = 0;
  for (const TensorSpec& spec : all) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    parameters += spec.shape.num_elements();
  }
  EXPECT_NEAR(static_cast<double>(2 * parameters), 159.3e9, 0.1e9);
}

TEST(CheckComplete, MissingTensors) {
  TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  tiny.Remove("model.layers.3.self_attn.q_norm.weight");
  tiny.Remove("model.layers.1.mlp.experts.15.up_proj.weight");
  EXPECT_EQ(Disagreement(tiny, absl::StatusCode::kFailedPrecondition),
            "2 tensor(s) missing: model.layers.3.self_attn.q_norm.weight [64]; "
            "model.layers.1.mlp.experts.15.up_proj.weight [64, 128]");
  // A whole expert more than the first ten names.
  for (int e = 0; e < 5; ++e) {
    for (const char* matrix : {"gate_proj", "up_proj", "down_proj"}) {
      tiny.Remove(fmt::format("model.layers.0.mlp.experts.{}.{}.weight", e, matrix));
    }
  }
  const std::string message = Disagreement(tiny, absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message, HasSubstr("17 tensor(s) missing: "));
  EXPECT_THAT(message, HasSubstr("; and 7 more"));
}

TEST(CheckComplete, ShapeAgainstConfig) {
  TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  test::TestTensor* const down = tiny.Find("model.layers.2.mlp.experts.7.down_proj.weight");
  down->shape = {64, 128};
  std::string file;
  for (const auto& shard : tiny.shards) {
    for (const auto& tensor : shard.tensors) {
      if (tensor.name == down->name) file = shard.file_name;
    }
  }
  EXPECT_EQ(
      Disagreement(tiny, absl::StatusCode::kFailedPrecondition),
      fmt::format("1 tensor(s) of another shape: model.layers.2.mlp.experts.7.down_proj.weight: "
                  "shape [64, 128], expected [128, 64] ({})",
                  file));
}

TEST(CheckComplete, UnknownTensorsByName) {
  TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  for (int i = 0; i < 13; ++i) {
    tiny.shards[0].tensors.push_back(
        MakeTensor(fmt::format("model.layers.0.mlp.extra_{:02}", i), "U8", {2}, 2));
  }
  const std::string message = Disagreement(tiny, absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message, HasSubstr("13 unknown tensor(s): model.layers.0.mlp.extra_00 U8 [2] "
                                 "(model-00001-of-00003.safetensors); "));
  EXPECT_THAT(message, HasSubstr("extra_09"));
  EXPECT_THAT(message, ::testing::Not(HasSubstr("extra_10")));
  EXPECT_THAT(message, HasSubstr("; and 3 more"));
}

// Each key of config.json that the tensors contradict, and what is said of it: one line, one
// reason.
TEST(CheckComplete, ContradictionsAreSaidInConfigsTerms) {
  struct Case {
    const char* key;
    nlohmann::json value;
    const char* checkpoint;
    std::string text;
  };
  const Case cases[] = {
      {"num_experts", 15, kTiny,
       "num_experts is 15, but the tensors are of 16 experts (the last: "
       "model.layers.0.mlp.experts.15.down_proj.weight, in model-0000"},
      {"num_experts", 64, kTiny, "num_experts is 64, but the tensors are of 16 experts"},
      {"num_experts", 512, kTinyFused,
       "num_experts is 512, but the tensors have 16 (model.layers.0.mlp.experts.down_proj "
       "[16, 128, 64] is in model-0000"},
      {"num_hidden_layers", 80, kTiny,
       "num_hidden_layers is 80, but the tensors are of 4 layers (the last: model.layers.3."},
      {"num_hidden_layers", 2, kTiny, "num_hidden_layers is 2, but the tensors are of 4 layers"},
      {"hidden_size", 256, kTiny,
       "hidden_size is 256, but the tensors have 128 (model.embed_tokens.weight [2048, 128]"},
      {"vocab_size", 4096, kTiny, "vocab_size is 4096, but the tensors have 2048"},
      {"moe_intermediate_size", 32, kTiny,
       "moe_intermediate_size is 32, but the tensors have 64 (model.layers.0.mlp.experts.0.gate"},
      {"moe_intermediate_size", 32, kTinyFused,
       "moe_intermediate_size is 32, but the tensors have 64"},
      {"shared_expert_intermediate_size", 32, kTiny,
       "shared_expert_intermediate_size is 32, but the tensors have 64"},
      {"linear_num_value_heads", 8, kTiny, "linear_num_value_heads is 8, but the tensors have 4"},
      {"head_dim", 32, kTiny, "head_dim is 32, but the tensors have 64"},
      {"full_attention_interval", 2, kTiny,
       "layer 1 is full_attention (layer_types, full_attention_interval), but "
       "model.layers.1.linear_attn."},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} {}", c.key, c.value.dump()));
    TestCheckpoint tiny = TestCheckpoint::Read(c.checkpoint);
    nlohmann::json config = nlohmann::json::parse(tiny.texts["config.json"]);
    config[c.key] = c.value;
    config.erase("layer_types");
    tiny.texts["config.json"] = config.dump();
    const auto summary = Check(tiny);
    EXPECT_EQ(summary.status().code(), absl::StatusCode::kFailedPrecondition) << summary.status();
    const std::string message(ToStd(summary.status().message()));
    EXPECT_THAT(message,
                HasSubstr(": config.json and the tensors contradict each other: " + c.text));
    // One reason, not its consequences.
    EXPECT_THAT(message, ::testing::Not(HasSubstr("missing")));
    EXPECT_THAT(message, ::testing::Not(HasSubstr("; ")));
  }
}

TEST(CheckComplete, PlainDTypes) {
  TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  test::TestTensor* const norm = tiny.Find("model.norm.weight");
  norm->dtype = "F32";
  norm->bytes.resize(512);
  ASSERT_TRUE(Check(tiny).ok()) << Check(tiny).status();
  norm->dtype = "F16";
  norm->bytes.resize(256);
  ASSERT_TRUE(Check(tiny).ok()) << Check(tiny).status();
  norm->dtype = "I16";
  EXPECT_EQ(Disagreement(tiny, absl::StatusCode::kUnimplemented),
            "1 tensor(s) of an unsupported dtype or format: model.norm.weight: dtype I16, expected "
            "BF16, F16 or F32 (model-00003-of-00003.safetensors)");
}

TEST(CheckComplete, LayerWithBothNamings) {
  TestCheckpoint fused = TestCheckpoint::Read(kTinyFused);
  fused.shards[0].tensors.push_back(
      MakeTensor("model.layers.2.mlp.experts.3.up_proj.weight", "BF16", {64, 128}, 64 * 128 * 2));
  const std::string message = Disagreement(fused, absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(message, HasSubstr("1 layer(s) with fused and per-expert tensors: layer 2 has "
                                 "model.layers.2.mlp.experts.gate_up_proj "
                                 "(model-00002-of-00002.safetensors) and "
                                 "model.layers.2.mlp.experts.3.up_proj.weight "
                                 "(model-00001-of-00002.safetensors)"));
  // Only a part of a fused pair.
  fused = TestCheckpoint::Read(kTinyFused);
  fused.Remove("model.layers.1.mlp.experts.down_proj");
  EXPECT_EQ(Disagreement(fused, absl::StatusCode::kFailedPrecondition),
            "1 tensor(s) missing: model.layers.1.mlp.experts.down_proj [16, 128, 64]");
}

TEST(CheckComplete, NamingMayDifferBetweenLayers) {
  TestCheckpoint mixed = TestCheckpoint::Read(kTinyFused);
  const TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  mixed.Remove("model.layers.2.mlp.experts.gate_up_proj");
  mixed.Remove("model.layers.2.mlp.experts.down_proj");
  for (const auto& shard : tiny.shards) {
    for (const auto& tensor : shard.tensors) {
      if (tensor.name.rfind("model.layers.2.mlp.experts.", 0) == 0) {
        mixed.shards[0].tensors.push_back(tensor);
      }
    }
  }
  const auto summary = Check(mixed);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->expert_naming, (std::vector{ExpertNaming::kFused, ExpertNaming::kFused,
                                                 ExpertNaming::kPerExpert, ExpertNaming::kFused}));
}

TEST(CheckComplete, TiedEmbeddingsNeedNoHead) {
  TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  nlohmann::json config = nlohmann::json::parse(tiny.texts["config.json"]);
  config["tie_word_embeddings"] = true;
  tiny.texts["config.json"] = config.dump();
  auto summary = Check(tiny);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->num_unused_tensors, 1);
  EXPECT_EQ(summary->unused_bytes, 2048 * 128 * 2);
  tiny.Remove("lm_head.weight");
  summary = Check(tiny);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->num_unused_tensors, 0);
}

TEST(CheckComplete, MtpIsCountedWhateverItsShapes) {
  TestCheckpoint demo = TestCheckpoint::Read(kDemo);
  const auto before = Check(demo);
  ASSERT_TRUE(before.ok()) << before.status();
  demo.shards[0].tensors.push_back(MakeTensor("mtp.more", "I8", {7}, 7));
  const auto after = Check(demo);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->num_mtp_tensors, before->num_mtp_tensors + 1);
  EXPECT_EQ(after->mtp_bytes, before->mtp_bytes + 7);
}

TEST(CheckComplete, DenseLayer) {
  TestCheckpoint tiny = TestCheckpoint::Read(kTiny);
  nlohmann::json config = nlohmann::json::parse(tiny.texts["config.json"]);
  config["mlp_only_layers"] = {1};
  config["intermediate_size"] = 96;
  tiny.texts["config.json"] = config.dump();
  EXPECT_THAT(Disagreement(tiny, absl::StatusCode::kFailedPrecondition),
              HasSubstr("3 tensor(s) missing: model.layers.1.mlp.gate_proj.weight [96, 128]"));
  for (auto& shard : tiny.shards) {
    std::erase_if(shard.tensors, [](const test::TestTensor& t) {
      return t.name.rfind("model.layers.1.mlp.", 0) == 0;
    });
  }
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    const bool down = std::string(name) == "down_proj";
    tiny.shards[0].tensors.push_back(MakeTensor(
        fmt::format("model.layers.1.mlp.{}.weight", name), "BF16",
        down ? std::vector<int64_t>{128, 96} : std::vector<int64_t>{96, 128}, 96 * 128 * 2));
  }
  const auto summary = Check(tiny);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->expert_naming[1], ExpertNaming::kNone);
  EXPECT_EQ(summary->num_expert_tensors, 3 * 16 * 3);
}

}  // namespace
}  // namespace banyan
