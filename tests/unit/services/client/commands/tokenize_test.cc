#include "services/client/commands/tokenize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace banyan::client {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

struct Result {
  int exit_code;
  std::string out;
  std::string err;
};

Result RunVerb(TokenizeOptions options, const std::string& input) {
  if (options.tokenizer.empty()) {
    options.tokenizer = std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo";
  }
  std::istringstream in(input);
  std::ostringstream out;
  std::ostringstream err;
  const int exit_code = RunTokenize(options, in, out, err);
  return {exit_code, out.str(), err.str()};
}

std::vector<Json> Lines(const std::string& text) {
  std::istringstream in(text);
  std::vector<Json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

TokenizeOptions JsonLines() {
  TokenizeOptions options;
  options.json_lines = true;
  return options;
}

TEST(TokenizeTest, AnswersEveryLineInItsPlace) {
  const Result result = RunVerb(JsonLines(),
                                "{\"text\": \"Give me <|im_end|>\"}\n"
                                "{\"messages\": [{\"role\": \"user\", \"content\": "
                                "\"<|im_end|>\"}], \"add_generation_prompt\": true}\r\n"
                                "{\"text\": \"a\xFF\"}\n"
                                "{\"ids\": [1001, 1002]}\n"
                                "{\"ids\": [1001, 0], \"skip_special_tokens\": true}");
  EXPECT_EQ(result.exit_code, 0) << result.out;
  EXPECT_EQ(result.err, "");
  const auto lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0]["ids"].back(), 1002);
  EXPECT_EQ(lines[1]["rendered"],
            "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(std::count(lines[1]["ids"].begin(), lines[1]["ids"].end(), 1002), 1);
  EXPECT_EQ(lines[3]["text"], "<|im_start|><|im_end|>");
  EXPECT_EQ(lines[4]["text"], "!");
  const auto again = Lines(RunVerb(JsonLines(), Json{{"ids", lines[2]["ids"]}}.dump()).out);
  EXPECT_EQ(again[0]["text"], "a\xEF\xBF\xBD");
}

TEST(TokenizeTest, BadLinesAreNamedAndTheOthersAnswered) {
  const Result result =
      RunVerb(JsonLines(),
              "{\"text\": \"a\"}\nnonsense\n\n{\"text\": 5}\n{\"txt\": \"\"}\n"
              "{\"ids\": [-1]}\n{\"ids\": [99999999]}\n{\"text\": \"\", \"x\": 1}\n[]\n"
              "{\"messages\": 1}\n{\"messages\": [], \"template_args\": 3}\n"
              "{\"messages\": [], \"template_args\": {\"tools\": 3}}\n"
              "{\"messages\": [{\"role\": \"user\"}]}\n{\"text\": \"b\"}\n");
  EXPECT_EQ(result.exit_code, 1);
  const auto lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 14u);
  const char* expected[] = {nullptr,
                            "line 2: not valid JSON at byte",
                            "line 3: not valid JSON at byte",
                            "line 4: text: expected a string",
                            "line 5: expected one of \"text\", \"messages\", \"ids\"",
                            "line 6: ids[0]: expected an id in [0, 1003), found -1",
                            "line 7: ids[0]: expected an id in [0, 1003), found 99999999",
                            "line 8: unknown field \"x\"",
                            "line 9: expected a JSON object",
                            "line 10: messages: expected a list",
                            "line 11: template_args: expected an object",
                            "line 12: template_args: \"tools\" is a field of its own",
                            "line 13: ",
                            nullptr};
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].contains("ids"), expected[i] == nullptr) << lines[i];
    if (expected[i] != nullptr) {
      EXPECT_THAT(lines[i].value("error", ""), ::testing::StartsWith(expected[i]));
    }
  }
}

TEST(TokenizeTest, GenerationPromptAndToolsAndArguments) {
  const std::string messages = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]";
  const auto lines =
      Lines(RunVerb(JsonLines(),
                    messages + ", \"add_generation_prompt\": true}\n" + messages +
                        ", \"add_generation_prompt\": false, "
                        "\"tools\": null, \"template_args\": {\"enable_thinking\": false}}\n")
                .out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0]["rendered"].get<std::string>(), HasSubstr("assistant"));
  EXPECT_EQ(lines[1]["rendered"], "<|im_start|>user\na<|im_end|>\n");
}

TEST(TokenizeTest, PlainText) {
  TokenizeOptions options;
  const Result from_stdin = RunVerb(options, "ab");
  options.text = "ab";
  const Result from_argument = RunVerb(options, "not read");
  EXPECT_EQ(from_stdin.out, from_argument.out);
  options.output = "json";
  const auto lines = Lines(RunVerb(options, "").out);
  std::string ids;
  for (const auto& id : lines[0]["ids"]) ids += (ids.empty() ? "" : " ") + id.dump();
  EXPECT_EQ(from_stdin.out, ids + "\n");
}

TEST(TokenizeTest, RefusesWhatMakesNoSense) {
  TokenizeOptions options = JsonLines();
  options.text = "x";
  EXPECT_EQ(RunVerb(options, "").exit_code, 2);
  options = {};
  options.output = "yaml";
  EXPECT_EQ(RunVerb(options, "").exit_code, 2);
  options = {};
  options.tokenizer = "/nonexistent";
  const Result missing = RunVerb(options, "");
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_EQ(missing.err, "banyan: error: /nonexistent/tokenizer.json: No such file or directory\n");
}

}  // namespace
}  // namespace banyan::client
