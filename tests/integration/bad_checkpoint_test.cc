// Checkpoints that are broken in one way each, given to the real binaries: the process ends with
// code 1, within bounded time, and one line of its log names the cause.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

// Experts' own tensors are the expert host's business, the trunk's are the trunk's.
enum class Refused { kByBoth, kByExpert, kByTrunk };

struct Damage {
  std::string name;
  std::function<void(TestCheckpoint&)> apply;
  std::vector<std::string> expected;  // parts of one log line
  std::string model = "tiny";         // in tests/data
  Refused refused = Refused::kByBoth;
  std::function<void(const std::string& directory)> after = {};  // to the files
  std::vector<std::string> unexpected = {};                      // in no line of the log
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

// Of an expert and of the trunk in the quantised models.
constexpr char kUp[] = "model.layers.2.mlp.experts.7.up_proj";
constexpr char kOut[] = "model.layers.1.linear_attn.out_proj";

constexpr char kState[] = ".quant_state.bitsandbytes__nf4";

std::string Weight(const char* module, const char* suffix) {
  return std::string(module) + ".weight" + suffix;
}

std::function<void(TestCheckpoint&)> Without(std::string name) {
  return [name](TestCheckpoint& model) { model.Remove(name); };
}

// Replaces text in the quant_state of `module`.
std::function<void(TestCheckpoint&)> InQuantState(std::string module, std::string from,
                                                  std::string to) {
  return [=](TestCheckpoint& model) {
    TestTensor* const state = model.Find(module + ".weight.quant_state.bitsandbytes__nf4");
    const size_t at = state->bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << state->bytes;
    state->bytes.replace(at, from.size(), to);
    state->shape = {static_cast<int64_t>(state->bytes.size())};
  };
}

// Overwrites bytes of a tensor.
std::function<void(TestCheckpoint&)> Poke(std::string name, size_t at, std::string bytes) {
  return [=](TestCheckpoint& model) {
    std::string& all = model.Find(name)->bytes;
    ASSERT_LE(at + bytes.size(), all.size());
    all.replace(at, bytes.size(), bytes);
  };
}

// Every expert's matrix [N, M] as other tools store it, known by its tensors alone: GPTQ [M / 8,
// N], AWQ [M, N / 8], compressed-tensors [N, M / 8], MLX [N, M / 8] under the weight's own name.
struct Packing {
  const char* name;
  const char* format;  // as the message has it
  const char* weight;
  const char* dtype;
  std::vector<std::string> companions;
  bool transposed;
  bool along_outputs;
};

std::function<void(TestCheckpoint&)> Packed(const Packing& packing) {
  return [packing](TestCheckpoint& model) {
    for (TestShard& shard : model.shards) {
      std::vector<TestTensor> tensors;
      for (TestTensor& tensor : shard.tensors) {
        if (tensor.name.find(".mlp.experts.") == std::string::npos) {
          tensors.push_back(std::move(tensor));
          continue;
        }
        const std::string module = tensor.name.substr(0, tensor.name.rfind(".weight"));
        int64_t rows = tensor.shape[0];
        int64_t cols = tensor.shape[1];
        (packing.along_outputs ? rows : cols) /= 8;
        if (packing.transposed) std::swap(rows, cols);
        tensors.push_back(MakeTensor(module + packing.weight, packing.dtype, {rows, cols},
                                     static_cast<size_t>(rows * cols * 4)));
        for (const std::string& companion : packing.companions) {
          tensors.push_back(MakeTensor(module + companion, "F16", {1, 4}, 8));
        }
      }
      shard.tensors = std::move(tensors);
    }
  };
}

const std::string kNaN32("\0\0\xc0\x7f", 4);
const std::string kNaN16("\xc0\x7f", 2);

std::vector<Damage> QuantisedDamages() {
  std::vector<Damage> damages;
  const auto both = [&](const char* name, const char* model,
                        std::function<void(TestCheckpoint&)> apply,
                        std::vector<std::string> expected) {
    damages.push_back({name, std::move(apply), std::move(expected), model});
  };
  const auto either = [&](const std::string& name, const char* model, auto apply,
                          const char* suffix, std::vector<std::string> expected) {
    for (const char* module : {kUp, kOut}) {
      std::vector<std::string> parts = expected;
      parts.push_back(std::string(module) + suffix);
      parts.push_back(".safetensors");
      damages.push_back({name + (module == kUp ? "OfExpert" : "OfTrunk"), apply(module), parts,
                         model, module == kUp ? Refused::kByExpert : Refused::kByTrunk});
    }
  };
  // Companions that are not there: known from the headers, so both refuse.
  for (const char* module : {kUp, kOut}) {
    const std::string of = module == kUp ? "OfExpert" : "OfTrunk";
    both(("NoAbsmax" + of).c_str(), "tiny-nf4", Without(Weight(module, ".absmax")),
         {Weight(module, ".absmax"), "missing", "U8", ".safetensors"});
    both(("NoQuantMap" + of).c_str(), "tiny-nf4-single", Without(Weight(module, ".quant_map")),
         {Weight(module, ".quant_map"), "missing"});
    both(("NoNestedAbsmax" + of).c_str(), "tiny-nf4", Without(Weight(module, ".nested_absmax")),
         {Weight(module, ".nested_absmax"), "missing"});
    both(("NoNestedMap" + of).c_str(), "tiny-nf4", Without(Weight(module, ".nested_quant_map")),
         {Weight(module, ".nested_quant_map"), "missing"});
    both(("NoQuantState" + of).c_str(), "tiny-nf4", Without(Weight(module, kState)),
         {Weight(module, kState), "missing"});
    both(("NoScb" + of).c_str(), "tiny-int8", Without(std::string(module) + ".SCB"),
         {std::string(module) + ".SCB", "missing", "I8"});
    both(("NoScaleInv" + of).c_str(), "tiny-fp8", Without(Weight(module, "_scale_inv")),
         {Weight(module, "_scale_inv"), "missing", "F8_E4M3"});
  }
  both("ScaleOfTheWrongGrid", "tiny-fp8",
       [](TestCheckpoint& model) {
         TestTensor* const scale = model.Find(Weight(kOut, "_scale_inv"));
         scale->shape = {1, 2};
         scale->bytes.resize(4);
       },
       {Weight(kOut, "_scale_inv"), "[1, 2]", "expected BF16 or F32 [1, 1]", ".safetensors"});
  both("ScbOfTheWrongLength", "tiny-int8",
       [](TestCheckpoint& model) {
         TestTensor* const scale = model.Find(std::string(kUp) + ".SCB");
         scale->shape = {63};
         scale->bytes.resize(63 * 4);
       },
       {std::string(kUp) + ".SCB", "[63]", "expected F32 [64]", ".safetensors"});
  both("CodesOfTheWrongLength", "tiny-nf4",
       [](TestCheckpoint& model) {
         TestTensor* const codes = model.Find(Weight(kUp, ""));
         codes->shape = {4095, 1};
         codes->bytes.resize(4095);
       },
       {Weight(kUp, ""), "4095 bytes, expected 4096 for [64, 128] in 4 bits", ".safetensors"});

  // The trunk's quant_state is read with the headers, by both; an expert's with the expert.
  const auto state = [&](const std::string& name, std::string from, std::string to,
                         std::vector<std::string> expected) {
    for (const char* module : {kUp, kOut}) {
      std::vector<std::string> parts = expected;
      parts.push_back(Weight(module, kState));
      parts.push_back(".safetensors");
      damages.push_back({name + (module == kUp ? "OfExpert" : "OfTrunk"),
                         InQuantState(module, from, to), parts, "tiny-nf4",
                         module == kUp ? Refused::kByExpert : Refused::kByBoth});
    }
  };
  state("StateMalformed", "\"blocksize\":", "\"blocksize\"", {"line 1"});
  state("StateLiesAboutShape", "128]", "127]", {"shape is [", "127], expected [", "128]"});
  state("StateOfAnotherBlockSize", "\"blocksize\": 64", "\"blocksize\": 65",
        {"blocksize is 65, supported: 32, 64"});
  state("StateOfAnotherType", "\"nf4\"", "\"fp4\"", {"quant_type is \"fp4\", expected \"nf4\""});
  state("StateWithoutOffset", "\"nested_offset\"", "\"nested_onset\"",
        {"unknown key 'nested_onset'"});
  // The JSON text ends before a key.
  const auto cut = [&](const char* name, std::string key, std::vector<std::string> expected) {
    expected.push_back(Weight(kOut, kState));
    both(
        name, "tiny-nf4",
        [key](TestCheckpoint& model) {
          TestTensor* const tensor = model.Find(Weight(kOut, kState));
          const size_t at = tensor->bytes.find(", \"" + key);
          ASSERT_NE(at, std::string::npos);
          tensor->bytes = tensor->bytes.substr(0, at) + "}";
          tensor->shape = {static_cast<int64_t>(tensor->bytes.size())};
        },
        expected);
  };
  cut("NoOffset", "nested_offset", {"nested_offset is missing, although other nested keys are"});
  cut("NoNestedKeys", "nested_blocksize",
      {"nested_offset is missing, although", Weight(kOut, ".absmax")});
  both("HalfTheScales", "tiny-nf4-single",
       InQuantState(kOut, "\"blocksize\": 64", "\"blocksize\": 32"),
       {Weight(kOut, ".absmax"), "shape [256], expected [512]: one for each 32 weights"});

  // Numbers.
  const auto poke = [](std::string suffix, size_t at, std::string bytes) {
    return [=](const char* module) { return Poke(std::string(module) + suffix, at, bytes); };
  };
  either("NaNScale", "tiny-nf4-single", poke(".weight.absmax", 40, kNaN32), ".weight.absmax",
         {"element 10 is nan, expected a finite number"});
  either("NaNNestedScale", "tiny-nf4", poke(".weight.nested_absmax", 0, kNaN32),
         ".weight.nested_absmax", {"element 0 is nan, expected a finite number"});
  either("NaNScb", "tiny-int8", poke(".SCB", 20, kNaN32), ".SCB",
         {"element 5 is nan, expected a finite number"});
  either("NaNScaleInv", "tiny-fp8", poke(".weight_scale_inv", 0, kNaN16), ".weight_scale_inv",
         {"element 0 is nan, expected a finite number"});
  either("NaNWeight", "tiny-fp8", poke(".weight", 3, "\x7f"), ".weight[0, 3] is nan",
         {"expected a finite number"});
  either("TableNotMonotone", "tiny-nf4", poke(".weight.quant_map", 20, std::string(4, '\0')),
         ".weight.quant_map", {"element 6 is -0.09", "expected more than element 5, 0"});
  either("NestedTableNotMonotone", "tiny-nf4",
         poke(".weight.nested_quant_map", 800, std::string(4, '\0')), ".weight.nested_quant_map",
         {"element 200 is 0, expected at least element 199"});
  for (int format = 1; format <= 3; ++format) {
    either(fmt::format("WeightFormat{}", format), "tiny-int8",
           poke(".weight_format", 0, std::string(1, static_cast<char>(format))), ".weight_format",
           {fmt::format("is {} (col32, turing or ampere), supported: 0", format)});
  }

  // config.json against the tensors, and what is not supported.
  both("ConfigSaysInt8", "tiny-nf4",
       InConfig("\"load_in_4bit\": true,\n  \"load_in_8bit\": false",
                "\"load_in_4bit\": false, \"load_in_8bit\": true"),
       {"quantization_config: bitsandbytes, load_in_8bit, but model.layers.", "is nf4",
        ".safetensors"});
  both("ConfigSaysFp4", "tiny-nf4", InConfig("\"nf4\"", "\"fp4\""),
       {"quantization_config: bitsandbytes, fp4", "is nf4"});
  for (const char* method : {"gptq", "awq", "auto-round", "quark", "mxfp4"}) {
    both((std::string("Method_") + method).c_str(), "tiny-fp8",
         InConfig("\"fp8\"", fmt::format("\"{}\"", method)),
         {fmt::format("quantization_config.quant_method is \"{}\", which is not supported", method),
          "supported: bf16, f16 and f32 weights, bitsandbytes NF4"});
  }
  // The same where config.json says nothing.
  const Packing packings[] = {
      {"Gptq", "GPTQ", ".qweight", "I32", {".qzeros", ".scales"}, true, false},
      {"GptqInOrder", "GPTQ", ".qweight", "I32", {".qzeros", ".scales", ".g_idx"}, true, false},
      {"Awq", "AWQ", ".qweight", "I32", {".qzeros", ".scales"}, true, true},
      {"PackQuantized",
       "compressed-tensors pack-quantized",
       ".weight_packed",
       "I32",
       {".weight_scale", ".weight_shape"},
       false,
       false},
      {"MlxByTensors", "MLX", ".weight", "U32", {".scales", ".biases"}, false, false},
  };
  for (const Packing& packing : packings) {
    both(packing.name, "tiny", Packed(packing),
         {fmt::format("192 tensor(s) of an unsupported dtype or format: "
                      "model.layers.0.mlp.experts.0.gate_proj{}",
                      packing.weight),
          fmt::format("is in the format {} (model-00001-of-00003.safetensors), which is not "
                      "supported (supported: bf16, f16 and f32 weights, bitsandbytes NF4",
                      packing.format)});
    damages.back().unexpected = {"unknown", "missing"};
  }
  // Fused experts are never quantised; a file that has them so is refused with what is supported.
  for (const char* dtype : {"U8", "I8", "F8_E4M3"}) {
    both((std::string("FusedExpertsOf_") + dtype).c_str(), "tiny-fused",
         [dtype](TestCheckpoint& model) {
           TestTensor* const fused = model.Find("model.layers.1.mlp.experts.gate_up_proj");
           fused->dtype = dtype;
           fused->bytes.resize(fused->bytes.size() / 2);
         },
         {"model.layers.1.mlp.experts.gate_up_proj", dtype, "BF16, F16 or F32", ".safetensors"});
  }
  both("CompressedTensorsInt4", "tiny-fp8",
       InConfig("\"fp8\"", "\"compressed-tensors\", \"format\": \"pack-quantized\""),
       {"\"compressed-tensors\" with format \"pack-quantized\", which is not supported"});
  both("Mlx", "tiny",
       InConfig("\"hidden_size\"", "\"quantization\": {\"bits\": 4}, \"hidden_size\""),
       {"(MLX), which is not supported"});
  both("Gguf", "tiny",
       [](TestCheckpoint& model) {
         model.shards.clear();
         model.index_json = "";
         model.texts["qwen3-next-q4_k_m.gguf"] = "GGUF";
       },
       {"qwen3-next-q4_k_m.gguf is in the format GGUF, which is not supported"});

  // Files.
  damages.push_back(
      {"ShardNotListed",
       [](TestCheckpoint& model) {
         model.index_json = model.MakeIndexJson();
         TestShard shard;
         shard.file_name = "model-00009-of-00009.safetensors";
         shard.tensors = {MakeTensor("x", "U8", {1}, 1)};
         model.shards.push_back(shard);
       },
       {"model.safetensors.index.json", "does not list", "model-00009-of-00009.safetensors"}});
  constexpr char kShard[] = "/model-00002-of-00003.safetensors";
  damages.push_back({"SymbolicLinkLoop",
                     [](TestCheckpoint&) {},
                     {"model-00002-of-00003.safetensors", "symbolic links"},
                     "tiny",
                     Refused::kByBoth,
                     [=](const std::string& directory) {
                       std::filesystem::remove(directory + kShard);
                       std::filesystem::create_symlink("model-00002-of-00003.safetensors",
                                                       directory + kShard);
                     }});
  damages.push_back({"ShardIsADirectory",
                     [](TestCheckpoint&) {},
                     {"model-00002-of-00003.safetensors", "not a regular file"},
                     "tiny",
                     Refused::kByBoth,
                     [=](const std::string& directory) {
                       std::filesystem::remove(directory + kShard);
                       std::filesystem::create_directory(directory + kShard);
                     }});
  damages.push_back({"UnreadableShard",
                     [](TestCheckpoint&) {},
                     {"model-00002-of-00003.safetensors", "Permission denied"},
                     "tiny",
                     Refused::kByBoth,
                     [=](const std::string& directory) {
                       std::filesystem::permissions(directory + kShard,
                                                    std::filesystem::perms::none);
                     }});
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
        TestCheckpoint::Read(std::string(BANYAN_SOURCE_DIR) + "/tests/data/" + GetParam().model);
    GetParam().apply(model);
    if (HasFatalFailure()) return;
    model.Write(temp_.path());
    if (GetParam().after) GetParam().after(temp_.path());
  }

  // `args` without root's right to read every file.
  static std::vector<std::string> Unprivileged(std::vector<std::string> args) {
    if (geteuid() == 0) {
      args.insert(args.begin(),
                  {"/usr/bin/setpriv", "--bounding-set=-dac_override,-dac_read_search"});
    }
    return args;
  }

  void ExpectRefused(const std::vector<std::string>& args) {
    Process process(Unprivileged(args));
    const absl::StatusOr<int> code = process.WaitExit(absl::Seconds(30));
    ASSERT_TRUE(code.ok()) << code.status();
    EXPECT_EQ(*code, 1) << process.Log();
    ExpectNamed(process, GetParam().expected);
    for (const std::string& part : GetParam().unexpected) {
      EXPECT_EQ(process.Log().find(part), std::string::npos) << part << " in:\n" << process.Log();
    }
  }

  TempDir temp_;
  TempDir packs_;
};

class BadForExpertsTest : public BadCheckpointTest {};
class BadForTrunkTest : public BadCheckpointTest {};

TEST_P(BadForExpertsTest, Refused) {
  ExpectRefused({BinaryPath("banyan-expert"), "--model=" + temp_.path(), "--listen=127.0.0.1:0",
                 "--metrics_listen=", "--threads=1", "--pool_dir=" + packs_.path()});
}

TEST_P(BadForTrunkTest, Refused) {
  // Nothing listens on the expert's address: a checkpoint is refused before the experts are waited
  // for.
  ExpectRefused({BinaryPath("banyan-trunk"), "--model=" + temp_.path(), "--listen=127.0.0.1:0",
                 "--metrics_listen=", "--experts=unix:" + temp_.File("no.sock"), "--threads=1"});
}

std::string NameOf(const ::testing::TestParamInfo<Damage>& damage) {
  std::string name = damage.param.name;
  std::erase(name, '-');
  return name;
}

// All but those that only the other service refuses.
std::vector<Damage> AllBut(Refused other) {
  std::vector<Damage> damages = Damages();
  for (Damage& damage : QuantisedDamages()) damages.push_back(std::move(damage));
  std::erase_if(damages, [other](const Damage& damage) { return damage.refused == other; });
  return damages;
}

INSTANTIATE_TEST_SUITE_P(Damages, BadForExpertsTest, ::testing::ValuesIn(AllBut(Refused::kByTrunk)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Damages, BadForTrunkTest, ::testing::ValuesIn(AllBut(Refused::kByExpert)),
                         NameOf);

}  // namespace
}  // namespace banyan::test
