// Checkpoints that are broken in one way each, given to the real binaries: the process ends with
// code 1, within bounded time, and one line of its log names the cause.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

struct Damage {
  std::string name;
  std::function<void(TestCheckpoint&)> apply;
  std::vector<std::string> expected;  // parts of one log line
};

constexpr char kNorm[] = "model.layers.1.input_layernorm.weight";
constexpr char kGate[] = "model.layers.2.mlp.experts.7.gate_proj.weight";

TestShard& ShardOf(TestCheckpoint& model, std::string_view tensor) {
  for (TestShard& shard : model.shards) {
    for (const TestTensor& candidate : shard.tensors) {
      if (candidate.name == tensor) return shard;
    }
  }
  ADD_FAILURE() << "no tensor " << tensor;
  return model.shards.front();
}

// Replaces a value in config.json's text; `from` must be there.
std::function<void(TestCheckpoint&)> InConfig(std::string from, std::string to) {
  return [from, to](TestCheckpoint& model) {
    std::string& text = model.texts.at("config.json");
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
  };
}

std::vector<Damage> Damages() {
  std::vector<Damage> damages = {
      {"MissingShard",
       [](TestCheckpoint& model) {
         model.index_json = model.MakeIndexJson();
         model.shards.pop_back();
       },
       {"model-00003-of-00003.safetensors", "absent"}},
      {"TruncatedShard",
       [](TestCheckpoint& model) {
         model.shards[1].truncate_to_bytes = model.shards[1].ToBytes().size() - 1000;
       },
       {"model-00002-of-00003.safetensors", "truncated"}},
      {"ZeroByteShard",
       [](TestCheckpoint& model) { model.shards[1].truncate_to_bytes = 0; },
       {"model-00002-of-00003.safetensors", "0 bytes"}},
      {"HeaderLengthLies",
       [](TestCheckpoint& model) { model.shards[0].header_length = uint64_t{1} << 62; },
       {"model-00001-of-00003.safetensors", "header length 4611686018427387904"}},
      {"HeaderIsGarbage",
       [](TestCheckpoint& model) { model.shards[0].header_json = "{\"a\": [1, 2"; },
       {"model-00001-of-00003.safetensors", "entry 'a'"}},
      {"OverlappingOffsets",
       [](TestCheckpoint& model) {
         TestTensor* const tensor = model.Find(kNorm);
         tensor->begin = 0;
         tensor->end = tensor->bytes.size();
       },
       {"data_offsets", "overlap"}},
      {"OffsetsOutOfRange",
       [](TestCheckpoint& model) {
         TestTensor* const tensor = model.Find(kNorm);
         tensor->begin = uint64_t{1} << 40;
         tensor->end = *tensor->begin + tensor->bytes.size();
       },
       {kNorm, "outside the data area"}},
      {"DuplicateTensor",
       [](TestCheckpoint& model) {
         const TestTensor copy = *model.Find(kNorm);
         TestShard& other =
             &ShardOf(model, kNorm) == &model.shards[0] ? model.shards[1] : model.shards[0];
         model.index_json = model.MakeIndexJson();
         other.tensors.push_back(copy);
       },
       {kNorm, "two shards"}},
      {"UnknownTensor",
       [](TestCheckpoint& model) {
         model.shards[0].tensors.push_back(
             MakeTensor("model.layers.1.surprise.weight", "BF16", {4}, 8));
       },
       {"model.layers.1.surprise.weight", "unknown"}},
      {"MissingTrunkTensor",
       [](TestCheckpoint& model) { model.Remove(kNorm); },
       {kNorm, "missing"}},
      {"MissingExpertTensor",
       [](TestCheckpoint& model) { model.Remove(kGate); },
       {kGate, "missing"}},
      {"ShapeAgainstConfig",
       [](TestCheckpoint& model) {
         TestTensor* const tensor = model.Find(kNorm);
         tensor->shape = {127};
         tensor->bytes.resize(254);
       },
       {kNorm, "[127]", "[128]"}},
      {"UnknownDType",
       [](TestCheckpoint& model) { model.Find(kNorm)->dtype = "F6_E3M2"; },
       {kNorm, "F6_E3M2", "not supported"}},
      {"UnsupportedDType",
       [](TestCheckpoint& model) { model.Find(kNorm)->dtype = "I16"; },
       {kNorm, "I16"}},
      {"NoConfig",
       [](TestCheckpoint& model) { model.texts.erase("config.json"); },
       {"config.json"}},
      {"ConfigIsGarbage",
       [](TestCheckpoint& model) { model.texts.at("config.json") = "{\"hidden_size\": "; },
       {"config.json"}},
      {"HeadsContradict",
       InConfig("\"num_attention_heads\": 4", "\"num_attention_heads\": 3"),
       {"num_attention_heads", "num_key_value_heads"}},
      {"MoreExpertsThanTensors",
       InConfig("\"num_experts\": 16", "\"num_experts\": 17"),
       {"num_experts is 17, but the tensors are of 16 experts", "experts.15.", ".safetensors"}},
      {"FewerExpertsThanTensors",
       InConfig("\"num_experts\": 16", "\"num_experts\": 15"),
       {"num_experts is 15, but the tensors are of 16 experts", "experts.15.", ".safetensors"}},
      {"LayersContradict",
       [](TestCheckpoint& model) {
         InConfig("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 80")(model);
         InConfig("\"layer_types\"", "\"layer_types_unused\"")(model);
       },
       {"num_hidden_layers is 80, but the tensors are of 4 layers", "model.layers.3.",
        ".safetensors"}},
      {"HiddenSizeContradicts",
       InConfig("\"hidden_size\": 128", "\"hidden_size\": 256"),
       {"hidden_size is 256, but the tensors have 128", "model.embed_tokens.weight",
        ".safetensors"}},
      {"MoreChosenThanExperts",
       InConfig("\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 40"),
       {"num_experts_per_tok", "40"}},
      {"LayerTypesTooMany",
       InConfig("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3"),
       {"layer_types", "num_hidden_layers"}},
      {"UnknownLayerType",
       InConfig("\"full_attention\"", "\"sparse_attention\""),
       {"layer_types", "sparse_attention"}},
      {"OtherArchitecture",
       InConfig("Qwen3NextForCausalLM", "LlamaForCausalLM"),
       {"LlamaForCausalLM"}},
      {"NegativeSize",
       InConfig("\"hidden_size\": 128", "\"hidden_size\": -128"),
       {"hidden_size", "-128"}},
      {"IndexNamesAnotherShard",
       [](TestCheckpoint& model) {
         std::string index = model.MakeIndexJson();
         const std::string& right = ShardOf(model, kNorm).file_name;
         const size_t entry = index.find(kNorm);
         ASSERT_NE(entry, std::string::npos);
         const size_t at = index.find(right, entry);
         ASSERT_NE(at, std::string::npos);
         const std::string& wrong = right == model.shards[0].file_name ? model.shards[1].file_name
                                                                       : model.shards[0].file_name;
         model.index_json = index.replace(at, right.size(), wrong);
       },
       {kNorm, "model.safetensors.index.json"}},
      {"IndexLeavesTheDirectory",
       [](TestCheckpoint& model) {
         model.index_json =
             "{\"metadata\": {}, \"weight_map\": {\"a\": \"../model-00001-of-00003.safetensors\"}}";
       },
       {"../model-00001-of-00003.safetensors"}},
  };
  return damages;
}

// The last error line of a log must hold every part.
void ExpectNamed(const Process& process, const std::vector<std::string>& parts) {
  const std::string log = process.Log();
  bool named = false;
  for (size_t begin = 0; begin < log.size();) {
    const size_t end = std::min(log.find('\n', begin), log.size());
    const std::string line = log.substr(begin, end - begin);
    bool all = true;
    for (const std::string& part : parts) all &= line.find(part) != std::string::npos;
    named |= all;
    begin = end + 1;
  }
  EXPECT_TRUE(named) << "no line names " << fmt::format("{}", fmt::join(parts, ", ")) << " in:\n"
                     << log;
}

class BadCheckpointTest : public ::testing::TestWithParam<Damage> {
 protected:
  void SetUp() override {
    TestCheckpoint model =
        TestCheckpoint::Read(std::string(BANYAN_SOURCE_DIR) + "/tests/data/tiny");
    GetParam().apply(model);
    if (!HasFatalFailure()) model.Write(temp_.path());
  }
  TempDir temp_;
};

TEST_P(BadCheckpointTest, ExpertRefuses) {
  Process expert({BinaryPath("banyan-expert"), "--model=" + temp_.path(), "--listen=127.0.0.1:0",
                  "--metrics_listen=", "--threads=1"});
  const absl::StatusOr<int> code = expert.WaitExit(absl::Seconds(30));
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1) << expert.Log();
  ExpectNamed(expert, GetParam().expected);
}

TEST_P(BadCheckpointTest, TrunkRefuses) {
  // Nothing listens on the expert's address: a checkpoint is refused before the experts are waited
  // for.
  Process trunk({BinaryPath("banyan-trunk"), "--model=" + temp_.path(), "--listen=127.0.0.1:0",
                 "--metrics_listen=", "--experts=unix:" + temp_.File("no.sock"), "--threads=1"});
  const absl::StatusOr<int> code = trunk.WaitExit(absl::Seconds(30));
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1) << trunk.Log();
  ExpectNamed(trunk, GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(Damages, BadCheckpointTest, ::testing::ValuesIn(Damages()),
                         [](const auto& damage) { return damage.param.name; });

}  // namespace
}  // namespace banyan::test
