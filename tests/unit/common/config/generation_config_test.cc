#include "common/config/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

TEST(GenerationConfig, ReadsWhatIsThere) {
  const auto config = ParseGenerationConfig(
      R"({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0,
          "repetition_penalty": 1.05, "max_new_tokens": 2048, "eos_token_id": [151645, 151643],
          "pad_token_id": 151643, "transformers_version": "4.57.0"})",
      "g.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FLOAT_EQ(config->temperature.value(), 0.6f);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_FLOAT_EQ(config->top_p.value(), 0.95f);
  EXPECT_EQ(config->min_p, 0.0f);
  EXPECT_FLOAT_EQ(config->repetition_penalty.value(), 1.05f);
  EXPECT_EQ(config->max_new_tokens, 2048);
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{151645, 151643}));
}

TEST(GenerationConfig, AbsentAndNullLeaveFieldsUnset) {
  for (const char* text : {"{}", R"({"temperature": null, "top_k": null, "eos_token_id": null})"}) {
    const auto config = ParseGenerationConfig(text, "g.json");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_FALSE(config->temperature.has_value());
    EXPECT_FALSE(config->top_k.has_value());
    EXPECT_FALSE(config->max_new_tokens.has_value());
    EXPECT_TRUE(config->eos_token_ids.empty());
  }
  const test::TempDir temp;
  const auto no_file = LoadGenerationConfig(temp.path());
  ASSERT_TRUE(no_file.ok()) << no_file.status();
  EXPECT_FALSE(no_file->temperature.has_value());
}

TEST(GenerationConfig, NoSamplingIsTemperatureZero) {
  const auto config =
      ParseGenerationConfig(R"({"do_sample": false, "temperature": 0.6, "eos_token_id": 7})", "g");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->temperature, 0.0f);
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{7});
}

TEST(GenerationConfig, BadValues) {
  const struct {
    std::string body;
    std::string message;
  } cases[] = {
      {R"("temperature": -0.1)", "temperature is -0.1, expected a number in 0..1000000"},
      {R"("temperature": "hot")", "temperature is \"hot\", expected a number in 0..1000000"},
      {R"("top_k": -1)", "top_k is -1, expected an integer in 0..2147483647"},
      {R"("top_k": 2.5)", "top_k is 2.5, expected an integer in 0..2147483647"},
      {R"("top_p": 1.5)", "top_p is 1.5, expected a number in 1.1754943508222875e-38..1"},
      {R"("top_p": 0)", "top_p is 0, expected a number in 1.1754943508222875e-38..1"},
      {R"("min_p": -1)", "min_p is -1, expected a number in 0..1"},
      {R"("repetition_penalty": 0)",
       "repetition_penalty is 0, expected a number in 1.1754943508222875e-38..1000000"},
      {R"("max_new_tokens": 0)", "max_new_tokens is 0, expected an integer in 1..2147483647"},
      {R"("max_new_tokens": 4294967296)",
       "max_new_tokens is 4294967296, expected an integer in 1..2147483647"},
      {R"("eos_token_id": [1, "x"])",
       "eos_token_id [1] is \"x\", expected an integer in 0..2147483647"},
      {R"("eos_token_id": -1)", "eos_token_id is -1, expected an integer in 0..2147483647"},
      {R"("do_sample": 1)", "do_sample is 1, expected true or false"},
  };
  for (const auto& bad : cases) {
    const auto config = ParseGenerationConfig("{" + bad.body + "}", "g.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << bad.body;
    EXPECT_EQ(config.status().message(), "g.json: " + bad.message);
  }
  const test::TempDir temp;
  test::WriteFile(temp.File("generation_config.json"), "[1]");
  EXPECT_EQ(LoadGenerationConfig(temp.path()).status().message(),
            temp.File("generation_config.json") + ": not a JSON object");
}

}  // namespace
}  // namespace banyan
