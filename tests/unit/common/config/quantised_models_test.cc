// Every quantised matrix of tests/data/quantised, which the libraries themselves wrote, decodes to
// their values bit for bit; the models are complete and say what they consist of.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "common/config/model_config.h"
#include "common/config/stored_matrix.h"
#include "common/config/tensor_inventory.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/sha256.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using test::TestCheckpoint;

constexpr char kData[] = BANYAN_SOURCE_DIR "/tests/data/";

std::unique_ptr<Checkpoint> OpenData(const std::string& name) {
  auto checkpoint = Checkpoint::Open(kData + name);
  if (!checkpoint.ok()) ADD_FAILURE() << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::string HashOf(const std::vector<float>& values) {
  return test::Sha256({reinterpret_cast<const char*>(values.data()), values.size() * 4});
}

class QuantisedMatrices : public ::testing::TestWithParam<const char*> {};

TEST_P(QuantisedMatrices, DecodeToTheLibrarysValues) {
  const std::string name = std::string("quantised/") + GetParam();
  const auto checkpoint = OpenData(name);
  ASSERT_NE(checkpoint, nullptr);
  const nlohmann::json expected =
      nlohmann::json::parse(test::ReadFile(kData + name + "/expected.json"));
  ASSERT_GE(expected.size(), 40u);
  for (const auto& [tensor, facts] : expected.items()) {
    const Shape shape{facts.at("shape")[0].get<int64_t>(), facts.at("shape")[1].get<int64_t>()};
    const auto matrix = FindStoredMatrix(*checkpoint, tensor, shape);
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    const auto decoder = MatrixDecoder::Create(*checkpoint, *matrix);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    const auto cols = static_cast<size_t>(matrix->cols);
    std::vector<float> values(static_cast<size_t>(matrix->rows) * cols);
    decoder->DecodeRows(0, matrix->rows, decoder->RowBytes(0, matrix->rows).data(), values.data());
    EXPECT_EQ(HashOf(values), facts.at("sha256").get<std::string>()) << tensor;
    // Rows alone and in threes: those of odd length begin within a byte.
    for (int64_t first = 0; first < matrix->rows; first += 2) {
      const int64_t count = std::min<int64_t>(3, matrix->rows - first);
      std::vector<float> rows(static_cast<size_t>(count) * cols);
      decoder->DecodeRows(first, count, decoder->RowBytes(first, count).data(), rows.data());
      ASSERT_TRUE(std::equal(rows.begin(), rows.end(), values.begin() + first * matrix->cols))
          << tensor << " row " << first;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, QuantisedMatrices, ::testing::Values("matrices", "wide", "deep"),
                         [](const auto& param) { return std::string(param.param); });

const TensorClassSummary* Row(const CheckpointSummary& summary, TensorClass tensor_class,
                              StoredFormat format) {
  for (const TensorClassSummary& row : summary.classes) {
    if (row.tensor_class == tensor_class && row.format == format) return &row;
  }
  return nullptr;
}

absl::StatusOr<CheckpointSummary> Summary(const std::string& directory) {
  const auto checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto config = LoadModelConfig(directory);
  if (!config.ok()) return config.status();
  return CheckComplete(**checkpoint, *config);
}

TEST(QuantisedModels, WideIsCompleteAndSized) {
  const auto summary = Summary(std::string(kData) + "quantised/wide");
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto checkpoint = OpenData("quantised/wide");
  EXPECT_EQ(summary->num_trunk_tensors + summary->num_expert_tensors + summary->num_mtp_tensors,
            static_cast<int64_t>(checkpoint->entries().size()));
  EXPECT_EQ(summary->num_mtp_tensors, 2 + 3);  // norm and fc, three companions
  const auto* const experts = Row(*summary, TensorClass::kRoutedExperts, StoredFormat::kFP4);
  ASSERT_NE(experts, nullptr);
  EXPECT_EQ(experts->num_weights, 2 * 64 * 3);
  EXPECT_EQ(experts->num_companions, 2 * 64 * 3 * 3);
  EXPECT_EQ(experts->stored_bytes, summary->expert_bytes);
  EXPECT_EQ(experts->resident_bytes, 0);
  const auto* const router = Row(*summary, TensorClass::kRouter, StoredFormat::kFP4);
  ASSERT_NE(router, nullptr);
  EXPECT_EQ(router->num_weights, 4);
  EXPECT_EQ(router->resident_bytes, 2 * (64 + 1) * 96 * 2);  // bf16
  EXPECT_EQ(router->decoded_bytes, router->resident_bytes);
  const auto* const head = Row(*summary, TensorClass::kHead, StoredFormat::kBF16);
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->resident_bytes, head->stored_bytes);
  EXPECT_EQ(head->decoded_bytes, 0);
  int64_t stored = 0, resident = 0;
  for (const TensorClassSummary& row : summary->classes) {
    stored += row.stored_bytes;
    resident += row.resident_bytes;
  }
  EXPECT_EQ(stored, summary->trunk_bytes + summary->expert_bytes + summary->mtp_bytes);
  EXPECT_EQ(resident, summary->trunk_resident_bytes);
}

// What CheckComplete says of a model after `change`.
template <class Change>
std::string Verdict(const std::string& model, Change change) {
  TestCheckpoint made = TestCheckpoint::Read(kData + model);
  change(made);
  const test::TempDir temp;
  made.Write(temp.path());
  const auto summary = Summary(temp.path());
  return summary.ok() ? "" : std::string(ToStd(summary.status().message()));
}

TEST(QuantisedModels, LeftOverCompanionsAreUnknown) {
  const std::string verdict = Verdict("tiny-nf4-single", [](TestCheckpoint& model) {
    model.shards[0].tensors.push_back(
        test::MakeTensor("model.layers.0.mlp.gate.weight.nested_absmax", "F32", {1}, 4));
    model.shards[0].tensors.push_back(test::MakeTensor("model.norm.SCB", "F32", {1}, 4));
  });
  EXPECT_THAT(verdict, ::testing::HasSubstr(
                           "2 unknown tensor(s): model.layers.0.mlp.gate.weight.nested_absmax F32 "
                           "[1] (model-00001-of-00002.safetensors); model.norm.SCB"));
}

TEST(QuantisedModels, ConfigIsCompared) {
  const auto replace = [](const char* from, const char* to) {
    return [from, to](TestCheckpoint& model) {
      std::string& text = model.texts.at("config.json");
      const size_t at = text.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      text.replace(at, std::string(from).size(), to);
    };
  };
  EXPECT_THAT(Verdict("tiny-nf4", replace("\"bnb_4bit_quant_type\": \"nf4\"",
                                          "\"bnb_4bit_quant_type\": \"fp4\"")),
              ::testing::HasSubstr("1 contradiction(s): quantization_config: bitsandbytes, fp4 "
                                   "double-quantised, but model.layers.0."));
  EXPECT_THAT(Verdict("tiny-nf4", replace("\"bnb_4bit_use_double_quant\": true",
                                          "\"bnb_4bit_use_double_quant\": false")),
              ::testing::HasSubstr("bnb_4bit_use_double_quant false, but model.layers."));
  const nlohmann::json quantised =
      nlohmann::json::parse(test::ReadFile(std::string(kData) + "tiny-fp8/config.json"));
  EXPECT_THAT(Verdict("tiny",
                      [&](TestCheckpoint& model) {
                        nlohmann::json config = nlohmann::json::parse(model.texts["config.json"]);
                        config["quantization_config"] = quantised.at("quantization_config");
                        model.texts["config.json"] = config.dump();
                      }),
              ::testing::HasSubstr("quantization_config: fp8, but no tensor is fp8"));
  // It decides nothing: without it the tensors say enough.
  EXPECT_EQ(Verdict("tiny-fp8",
                    [](TestCheckpoint& model) {
                      nlohmann::json config = nlohmann::json::parse(model.texts["config.json"]);
                      config.erase("quantization_config");
                      model.texts["config.json"] = config.dump();
                    }),
            "");
}

TEST(QuantisedModels, OtherFormatsAreNamed) {
  constexpr char kGate[] = "model.layers.0.mlp.experts.0.gate_proj";
  const auto instead = [&](const char* suffix, const char* dtype) {
    return [=](TestCheckpoint& model) {
      model.Remove(std::string(kGate) + ".weight");
      model.shards[0].tensors.push_back(
          test::MakeTensor(std::string(kGate) + suffix, dtype, {2, 2}, 16));
    };
  };
  EXPECT_THAT(Verdict("tiny", instead(".qweight", "I32")),
              ::testing::HasSubstr("gate_proj.qweight I32 [2, 2] is in the format GPTQ or AWQ"));
  EXPECT_THAT(Verdict("tiny", instead(".weight_packed", "I32")),
              ::testing::HasSubstr("is in the format compressed-tensors pack-quantized"));
  EXPECT_THAT(Verdict("tiny",
                      [&](TestCheckpoint& model) {
                        instead(".weight", "U32")(model);
                        model.shards[0].tensors.push_back(
                            test::MakeTensor(std::string(kGate) + ".scales", "BF16", {2}, 4));
                      }),
              ::testing::HasSubstr("gate_proj.weight is in the format MLX"));
}

// Any mixture: the bf16 model with one matrix of each format.
TEST(QuantisedModels, MixturesAreComplete) {
  const std::string verdict = Verdict("tiny", [](TestCheckpoint& model) {
    const auto take = [&](const char* from, const std::string& module) {
      const TestCheckpoint other = TestCheckpoint::Read(std::string(kData) + from);
      model.Remove(module + ".weight");
      for (const auto& shard : other.shards) {
        for (const auto& tensor : shard.tensors) {
          // The weight in one shard, its companions in another.
          if (!tensor.name.starts_with(module + ".")) continue;
          model.shards[tensor.name == module + ".weight" ? 0 : 1].tensors.push_back(tensor);
        }
      }
    };
    take("tiny-nf4", "model.layers.0.mlp.experts.0.gate_proj");
    take("tiny-nf4-single", "model.layers.0.mlp.experts.0.up_proj");
    take("tiny-int8", "model.layers.0.mlp.experts.1.gate_proj");
    take("tiny-fp8", "model.layers.0.mlp.experts.1.up_proj");
    take("tiny-int8", "model.layers.0.linear_attn.out_proj");
    take("tiny-fp8", "model.layers.3.self_attn.o_proj");
  });
  EXPECT_EQ(verdict, "");
}

}  // namespace
}  // namespace banyan
