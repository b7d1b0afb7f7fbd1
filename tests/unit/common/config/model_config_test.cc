#include "common/config/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

// The published 80B in the form of transformers 4.57.
json Published() {
  return json::parse(R"({
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
    "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "decoder_sparse_step": 1, "full_attention_interval": 4,
    "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 5120, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
    "max_position_embeddings": 262144, "mlp_only_layers": [], "moe_intermediate_size": 512,
    "norm_topk_prob": true, "num_attention_heads": 16, "num_experts": 512,
    "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2,
    "output_router_logits": false, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 10000000, "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "transformers_version": "4.57.0.dev0", "use_cache": true,
    "use_sliding_window": false, "vocab_size": 151936, "sliding_window": 4096,
    "num_nextn_predict_layers": 1, "mtp_num_hidden_layers": 1})");
}

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump(), "config.json");
}

TEST(ModelConfig, Transformers457) {
  const auto config = Parse(Published());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_type, "qwen3_next");
  EXPECT_EQ(config->vocab_size, 151936);
  EXPECT_EQ(config->hidden_size, 2048);
  EXPECT_EQ(config->num_hidden_layers, 48);
  EXPECT_EQ(config->intermediate_size, 5120);
  EXPECT_EQ(config->rms_norm_eps, 1e-6f);
  EXPECT_EQ(config->max_position_embeddings, 262144);
  EXPECT_EQ(config->head_dim, 256);
  EXPECT_EQ(config->rotary_dim, 64);
  EXPECT_EQ(config->rope_theta, 1e7);
  EXPECT_EQ(config->linear_conv_dim(), 8192);
  EXPECT_EQ(config->num_experts, 512);
  EXPECT_EQ(config->num_experts_per_tok, 10);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{151645});
  ASSERT_EQ(config->mixers.size(), 48u);
  for (size_t i = 0; i < 48; ++i) {
    EXPECT_EQ(config->mixers[i] == MixerKind::kFullAttention, i % 4 == 3) << i;
    EXPECT_EQ(config->mlps[i], MlpKind::kMoe);
  }
}

TEST(ModelConfig, Transformers5GivesTheSame) {
  json v5 = Published();
  for (const char* key : {"rope_theta", "partial_rotary_factor", "rope_scaling", "torch_dtype",
                          "full_attention_interval"}) {
    v5.erase(key);
  }
  v5["dtype"] = "bfloat16";
  v5["rope_parameters"] = {
      {"rope_type", "default"}, {"rope_theta", 1e7}, {"partial_rotary_factor", 0.25}};
  for (int i = 0; i < 48; ++i) {
    v5["layer_types"].push_back(i % 4 == 3 ? "full_attention" : "linear_attention");
  }
  const auto a = Parse(Published());
  const auto b = Parse(v5);
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(a->mixers, b->mixers);
  EXPECT_EQ(a->rope_theta, b->rope_theta);
  EXPECT_EQ(a->rotary_dim, b->rotary_dim);
}

TEST(ModelConfig, WhereRopeIsLookedUp) {
  json config = Published();
  config["rope_scaling"] = {{"type", "default"}, {"rope_theta", 2e6}};
  EXPECT_EQ(Parse(config)->rope_theta, 2e6);
  config["rope_parameters"] = {{"rope_theta", 3e6}, {"partial_rotary_factor", 0.5}};
  EXPECT_EQ(Parse(config)->rope_theta, 3e6);
  EXPECT_EQ(Parse(config)->rotary_dim, 128);
  config["rope_parameters"] = {{"rope_theta", nullptr}};
  EXPECT_EQ(Parse(config)->rope_theta, 2e6) << "null counts as absent";
  config["rope_scaling"] = nullptr;
  config["rope_theta"] = nullptr;
  EXPECT_EQ(Parse(config)->rope_theta, 1e4);
  config.erase("partial_rotary_factor");
  EXPECT_EQ(Parse(config)->rotary_dim, 64);
}

TEST(ModelConfig, LayerTypesWinAndLegacyNamesWork) {
  json config = Published();
  config["num_hidden_layers"] = 3;
  config["layer_types"] = {"attention", "mamba", "full_attention"};
  EXPECT_EQ(Parse(config)->mixers,
            (std::vector{MixerKind::kFullAttention, MixerKind::kLinearAttention,
                         MixerKind::kFullAttention}));
  config["layer_types"] = nullptr;
  config["full_attention_interval"] = 2;
  EXPECT_EQ(Parse(config)->mixers,
            (std::vector{MixerKind::kLinearAttention, MixerKind::kFullAttention,
                         MixerKind::kLinearAttention}));
}

TEST(ModelConfig, DenseLayers) {
  json config = Published();
  config["num_hidden_layers"] = 5;
  config["decoder_sparse_step"] = 2;
  config["mlp_only_layers"] = {3};
  EXPECT_EQ(Parse(config)->mlps, (std::vector{MlpKind::kDense, MlpKind::kMoe, MlpKind::kDense,
                                              MlpKind::kDense, MlpKind::kDense}));
  config.erase("intermediate_size");
  EXPECT_EQ(Parse(config).status().message(), "config.json: intermediate_size is missing");
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = nullptr;
  EXPECT_TRUE(Parse(config).ok()) << "no layer needs intermediate_size";
}

TEST(ModelConfig, EndTokens) {
  json config = Published();
  config["eos_token_id"] = {5, 6};
  EXPECT_EQ(Parse(config)->eos_token_ids, (std::vector<int32_t>{5, 6}));
  config["eos_token_id"] = nullptr;
  EXPECT_TRUE(Parse(config)->eos_token_ids.empty());
}

TEST(ModelConfig, EveryGeometryKeyIsRequired) {
  for (const char* key :
       {"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "linear_num_key_heads", "linear_num_value_heads",
        "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim", "num_experts",
        "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"}) {
    for (bool null : {false, true}) {
      json config = Published();
      if (null) {
        config[key] = nullptr;
      } else {
        config.erase(key);
      }
      const auto parsed = Parse(config);
      EXPECT_EQ(parsed.status().code(), kInvalid) << key;
      EXPECT_EQ(parsed.status().message(), fmt::format("config.json: {} is missing", key));
    }
  }
}

TEST(ModelConfig, NumbersOutOfRangeOrOfAnotherType) {
  for (const char* key :
       {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "linear_num_key_heads", "linear_num_value_heads",
        "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim", "num_experts",
        "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size",
        "intermediate_size", "max_position_embeddings", "decoder_sparse_step",
        "full_attention_interval"}) {
    for (const json& value :
         {json(0), json(-1), json(int64_t{1} << 40), json(std::numeric_limits<uint64_t>::max()),
          json(std::numeric_limits<int64_t>::min()), json(4.0), json("4"), json(true),
          json::array({4}), json::object()}) {
      json config = Published();
      config[key] = value;
      const auto parsed = Parse(config);
      EXPECT_EQ(parsed.status().code(), kInvalid) << key << " " << value;
      EXPECT_THAT(parsed.status().message(),
                  HasSubstr(fmt::format("config.json: {} is {}, expected an integer in ", key,
                                        value.dump())));
    }
  }
}

struct Change {
  const char* key;
  json value;
  absl::StatusCode code;
  std::string message;
};

TEST(ModelConfig, ContradictionsAndWhatIsNotSupported) {
  const Change changes[] = {
      {"num_key_value_heads", 3, kInvalid,
       "config.json: num_attention_heads is 16, not a multiple of num_key_value_heads 3"},
      {"num_key_value_heads", 32, kInvalid,
       "config.json: num_attention_heads is 16, not a multiple of num_key_value_heads 32"},
      {"linear_num_key_heads", 5, kInvalid,
       "config.json: linear_num_value_heads is 32, not a multiple of linear_num_key_heads 5"},
      {"num_experts_per_tok", 513, kInvalid,
       "config.json: num_experts_per_tok is 513, more than num_experts 512"},
      {"num_experts", 65536, kInvalid,
       "config.json: num_experts is 65536, expected an integer in 1..65535"},
      {"num_experts", 65535, kInvalid,
       "config.json: num_experts is 65535 in 48 layers, expected at most 1048576 experts in all"},
      {"layer_types", json::array({"full_attention"}), kInvalid,
       "config.json: layer_types has 1 entries, but num_hidden_layers is 48"},
      {"layer_types", "full_attention", kInvalid,
       "config.json: layer_types is \"full_attention\", expected a list"},
      {"layer_types", json(std::vector<std::string>(48, "recurrent")), kInvalid,
       "config.json: layer_types[0] is \"recurrent\", expected linear_attention or full_attention"},
      {"layer_types", json(std::vector<int>(48, 1)), kInvalid,
       "config.json: layer_types[0] is 1, expected linear_attention or full_attention"},
      {"layer_types", json(std::vector<std::string>(48, "sliding_attention")), kUnimplemented,
       "config.json: layer_types[0] is \"sliding_attention\", which is not supported (supported: "
       "linear_attention or full_attention)"},
      {"mlp_only_layers", json::array({0, 48}), kInvalid,
       "config.json: mlp_only_layers [1] is 48, expected an integer in 0..47"},
      {"mlp_only_layers", 3, kInvalid,
       "config.json: mlp_only_layers is 3, expected a list of integers"},
      {"partial_rotary_factor", 1.5, kInvalid,
       "config.json: partial_rotary_factor is 1.5, expected a number in 0..1"},
      {"partial_rotary_factor", 0.3, kInvalid, ""},  // 76 of 256: fine
      {"partial_rotary_factor", 0.0, kInvalid,
       "config.json: partial_rotary_factor 0 of head_dim 256 gives 0 rotary dimensions, expected "
       "an "
       "even number >= 2"},
      {"head_dim", 100, kInvalid,
       "config.json: partial_rotary_factor 0.25 of head_dim 100 gives 25 rotary dimensions, "
       "expected an even number >= 2"},
      {"rope_theta", 0, kInvalid,
       "config.json: rope_theta is 0, expected a number in 1..1000000000000000"},
      {"rope_theta", "1e7", kInvalid,
       "config.json: rope_theta is \"1e7\", expected a number in 1..1000000000000000"},
      {"rms_norm_eps", -1e-6, kInvalid,
       "config.json: rms_norm_eps is -1e-06, expected a number in 1e-12..0.1"},
      {"norm_topk_prob", 1, kInvalid, "config.json: norm_topk_prob is 1, expected true or false"},
      {"eos_token_id", 151936, kInvalid,
       "config.json: eos_token_id is 151936, expected an integer in 0..151935"},
      {"eos_token_id", json::array({1, -1}), kInvalid,
       "config.json: eos_token_id [1] is -1, expected an integer in 0..151935"},
      {"architectures", json::array({"LlamaForCausalLM"}), kUnimplemented,
       "config.json: architectures is [\"LlamaForCausalLM\"], which is not supported (supported: "
       "Qwen3NextForCausalLM)"},
      {"architectures", "Qwen3NextForCausalLM", kInvalid,
       "config.json: architectures is \"Qwen3NextForCausalLM\", expected a list of names"},
      {"model_type", "llama", kUnimplemented,
       "config.json: model_type is \"llama\", which is not supported (supported: qwen3_next)"},
      {"quantization_config",
       {{"quant_method", "gptq"}},
       kUnimplemented,
       "config.json: quantization_config.quant_method is \"gptq\", which is not supported "
       "(supported: " +
           std::string(kSupportedWeights) + ")"},
      {"quantization_config",
       {{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}},
       kUnimplemented,
       "config.json: quantization_config.quant_method is \"compressed-tensors\" with format "
       "\"pack-quantized\", which is not supported (supported: " +
           std::string(kSupportedWeights) + ")"},
      {"quantization_config",
       {{"quant_method", "fp8"}, {"weight_block_size", {64, 128}}},
       kUnimplemented,
       "config.json: quantization_config.weight_block_size is [64,128], which is not supported "
       "(supported: " +
           std::string(kSupportedWeights) + ")"},
      {"quantization_config",
       {{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}, {"load_in_4bit", true}},
       kInvalid,
       "config.json: quantization_config: load_in_8bit is true and load_in_4bit is true, expected "
       "one of them to be true"},
      {"quantization_config", json::object(), kInvalid,
       "config.json: quantization_config: quant_method is missing"},
      {"hidden_act", "gelu", kUnimplemented,
       "config.json: hidden_act is \"gelu\", which is not supported (supported: silu)"},
      {"attention_bias", true, kUnimplemented,
       "config.json: attention_bias is true, which is not supported (supported: false)"},
      {"attn_output_gate", false, kUnimplemented,
       "config.json: attn_output_gate is false, which is not supported (supported: true)"},
      {"layer_scale", true, kUnimplemented,
       "config.json: layer_scale is true, which is not supported (supported: false)"},
      {"use_sliding_window", true, kUnimplemented,
       "config.json: use_sliding_window is true, which is not supported (supported: false)"},
      {"rope_scaling",
       {{"rope_type", "yarn"}, {"factor", 4.0}},
       kUnimplemented,
       "config.json: rope_scaling: rope_type is \"yarn\", which is not supported (supported: "
       "default)"},
      {"rope_scaling",
       {{"type", "linear"}},
       kUnimplemented,
       "config.json: rope_scaling: type is \"linear\", which is not supported (supported: "
       "default)"},
      {"rope_parameters",
       {{"rope_type", "llama3"}},
       kUnimplemented,
       "config.json: rope_parameters: rope_type is \"llama3\", which is not supported (supported: "
       "default)"},
      {"rope_parameters",
       {{"rope_theta", -1}},
       kInvalid,
       "config.json: rope_parameters: rope_theta is -1, expected a number in "
       "1..1000000000000000"},
      {"rope_parameters", 4, kInvalid, "config.json: rope_parameters is 4, expected an object"},
  };
  for (const Change& change : changes) {
    json config = Published();
    config[change.key] = change.value;
    const auto parsed = Parse(config);
    if (change.message.empty()) {
      EXPECT_TRUE(parsed.ok()) << change.key << " " << change.value << " " << parsed.status();
      continue;
    }
    EXPECT_EQ(parsed.status().code(), change.code) << change.key << " " << change.value;
    EXPECT_EQ(parsed.status().message(), change.message);
  }
}

TEST(ModelConfig, MalformedText) {
  const auto error = [](const std::string& text) {
    const auto parsed = ParseModelConfig(text, "config.json");
    EXPECT_EQ(parsed.status().code(), kInvalid) << text;
    return std::string(ToStd(parsed.status().message()));
  };
  EXPECT_THAT(error(""), HasSubstr("config.json: parse error at line 1, column 1"));
  EXPECT_THAT(error("{"), HasSubstr("config.json: parse error at line 1, column 2"));
  EXPECT_THAT(error("{\"rms_norm_eps\": NaN}"), HasSubstr("invalid literal"));
  EXPECT_THAT(error("{\"rope_theta\": Infinity}"), HasSubstr("invalid literal"));
  EXPECT_THAT(error("{\"rope_theta\": 1e999}"), HasSubstr("number overflow"));
  EXPECT_EQ(error("[]"), "config.json: not a JSON object");
  EXPECT_EQ(error("null"), "config.json: not a JSON object");
  EXPECT_EQ(error("{\"head_dim\":1,\"head_dim\":1}"), "config.json: key 'head_dim' appears twice");
  EXPECT_EQ(error(std::string("{}\0", 3)), "config.json: zero byte at 2");
  EXPECT_EQ(error("{\"a\":" + std::string(100'000, '[')),
            "config.json: nested deeper than 64 levels");
  EXPECT_EQ(error(std::string(17'000'000, ' ')),
            "config.json: 17000000 bytes, expected at most 16000000");
}

TEST(ModelConfig, LoadNamesThePath) {
  const test::TempDir temp;
  const auto absent = LoadModelConfig(temp.path());
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(absent.status().message(), HasSubstr(temp.File("config.json")));
  test::WriteFile(temp.File("config.json"), "{}");
  EXPECT_EQ(LoadModelConfig(temp.path()).status().message(),
            temp.File("config.json") + ": model_type is missing");
}

}  // namespace
}  // namespace banyan
