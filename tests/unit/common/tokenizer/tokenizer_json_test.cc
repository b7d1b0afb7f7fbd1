// What tokenizer.json may not say, and what is said about it.
#include "common/tokenizer/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "common/tokenizer/bpe_tokenizer.h"
#include "tests/unit/common/tokenizer/test_tokenizer.h"

namespace banyan {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

void ExpectRefused(const std::function<void(Json&)>& bend, absl::StatusCode code,
                   std::string_view message) {
  Json json = SmallTokenizerJson();
  bend(json);
  const auto tokenizer = BpeTokenizer::Create(json.dump(), "t.json");
  ASSERT_FALSE(tokenizer.ok()) << message;
  EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status();
  const std::string found(tokenizer.status().message());
  EXPECT_THAT(found, HasSubstr(std::string(message)));
  EXPECT_EQ(found.substr(0, 8), "t.json: ") << found;
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(TokenizerJsonTest, RefusesFeaturesByName) {
  const auto set = [](const char* pointer, Json value) {
    return [pointer, value](Json& j) { j[Json::json_pointer(pointer)] = value; };
  };
  ExpectRefused(set("/model/type", "Unigram"), kUnimplemented, "model.type: \"Unigram\"");
  ExpectRefused(set("/model/dropout", 0.1), kUnimplemented, "model.dropout: 0.1");
  ExpectRefused(set("/model/ignore_merges", true), kUnimplemented, "model.ignore_merges: true");
  ExpectRefused(set("/model/byte_fallback", true), kUnimplemented, "model.byte_fallback");
  ExpectRefused(set("/model/continuing_subword_prefix", "##"), kUnimplemented,
                "model.continuing_subword_prefix: \"##\"");
  ExpectRefused(set("/model/end_of_word_suffix", "</w>"), kUnimplemented, "end_of_word_suffix");
  ExpectRefused(set("/model/new_thing", 1), kUnimplemented, "model.new_thing: unknown field");
  ExpectRefused(set("/normalizer/type", "NFKC"), kUnimplemented, "normalizer: NFKC");
  ExpectRefused(set("/normalizer", {{"type", "Sequence"},
                                    {"normalizers", {{{"type", "NFC"}}, {{"type", "Lowercase"}}}}}),
                kUnimplemented, "normalizer: Lowercase");
  ExpectRefused(set("/pre_tokenizer", nullptr), kUnimplemented, "pre_tokenizer: null");
  ExpectRefused(set("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\w+"), kUnimplemented,
                "\"\\\\w+\"} is not supported, expected (?i:'s|");
  ExpectRefused(set("/pre_tokenizer/pretokenizers/0/behavior", "Removed"), kUnimplemented,
                "behavior: \"Removed\"");
  ExpectRefused(set("/pre_tokenizer/pretokenizers/0/invert", true), kUnimplemented, "invert");
  ExpectRefused(set("/pre_tokenizer/pretokenizers/1/add_prefix_space", true), kUnimplemented,
                "add_prefix_space");
  ExpectRefused(set("/pre_tokenizer/pretokenizers/1/use_regex", true), kUnimplemented, "use_regex");
  ExpectRefused(set("/pre_tokenizer/pretokenizers/1/type", "Digits"), kUnimplemented,
                "Sequence of [Split, Digits]");
  ExpectRefused(set("/post_processor", {{"type", "TemplateProcessing"}}), kUnimplemented,
                "post_processor: TemplateProcessing");
  ExpectRefused(set("/decoder", {{"type", "WordPiece"}}), kUnimplemented, "decoder: WordPiece");
  ExpectRefused(set("/truncation", {{"max_length", 5}}), kUnimplemented, "truncation");
  ExpectRefused(set("/padding", {{"strategy", {{"Fixed", 8}}}}), kUnimplemented, "padding");
  for (const char* flag : {"lstrip", "rstrip", "single_word", "normalized"}) {
    ExpectRefused([&](Json& j) { j["added_tokens"][1][flag] = true; }, kUnimplemented,
                  std::string("added_tokens[1] (<|en).") + flag);
  }
}

TEST(TokenizerJsonTest, NamesWhatIsMalformed) {
  ExpectRefused([](Json& j) { j["model"].erase("merges"); }, kInvalid, "model.merges: missing");
  ExpectRefused([](Json& j) { j["model"]["merges"] = Json::array(); }, kInvalid,
                "without merges a vocabulary of 262 entries cannot encode text");
  ExpectRefused([](Json& j) { j["model"].erase("vocab"); }, kInvalid, "model.vocab: missing");
  ExpectRefused([](Json& j) { j["model"]["vocab"].erase("A"); }, kInvalid,
                "no entry for byte 0x41, expected all 256");
  ExpectRefused([](Json& j) { j["model"]["vocab"]["he"] = 3; }, kInvalid, "id 3 given to both");
  ExpectRefused([](Json& j) { j["model"]["vocab"]["he"] = "x"; }, kInvalid,
                "model.vocab[\"he\"]: expected an id");
  ExpectRefused([](Json& j) { j["model"]["vocab"]["he"] = -1; }, kInvalid, "expected an id");
  ExpectRefused([](Json& j) { j["model"]["vocab"]["he"] = 1 << 30; }, kInvalid,
                "id 1073741824, expected less than 4194304");
  ExpectRefused([](Json& j) { j["model"]["vocab"]["a b"] = 300; }, kInvalid,
                "model.vocab[\"a b\"]: not spelled in the byte-level alphabet");
  ExpectRefused([](Json& j) { j["model"]["merges"][1] = "t he he"; }, kInvalid,
                "model.merges[1]: \"t he he\", expected two parts");
  ExpectRefused(
      [](Json& j) {
        j["model"]["merges"][1] = {"t", "he", "x"};
      },
      kInvalid, "model.merges[1]");
  ExpectRefused([](Json& j) { j["model"]["merges"][1] = {"t"}; }, kInvalid, "1 parts, expected 2");
  ExpectRefused([](Json& j) { j["model"]["merges"][1] = 7; }, kInvalid,
                "model.merges[1]: expected");
  ExpectRefused(
      [](Json& j) {
        j["model"]["merges"][1] = {"q", "q"};
      },
      kInvalid, "model.merges[1]: \"qq\" is not in the vocabulary");
  ExpectRefused(
      [](Json& j) {
        j["model"]["merges"].push_back({"h", "e"});
      },
      kInvalid, "model.merges[6]: \"h\" and \"e\" were merged before");
  ExpectRefused([](Json& j) { j["added_tokens"][0]["id"] = 2; }, kInvalid,
                "id 2 of \"<|end|>\" belongs to another entry");
  ExpectRefused([](Json& j) { j["added_tokens"][0]["content"] = ""; }, kInvalid,
                "added_tokens[0].content");
  ExpectRefused([](Json& j) { j["added_tokens"][0]["content"] = "<think>"; }, kInvalid,
                "\"<think>\" has ids");
  ExpectRefused([](Json& j) { j["added_tokens"][0]["content"] = "the"; }, kInvalid,
                "\"the\" has id 262, but id 257 in the vocabulary");
  ExpectRefused([](Json& j) { j = Json::array(); }, kInvalid, "expected an object at the top");
  const auto broken = BpeTokenizer::Create("{\"model\": [1, 2", "t.json");
  EXPECT_THAT(std::string(broken.status().message()), HasSubstr("not valid JSON at byte 16"));
  EXPECT_FALSE(BpeTokenizer::Create(std::string(10000, '['), "t.json").ok());
  EXPECT_EQ(BpeTokenizer::Load("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerJsonTest, BothEncodingsOfMergesAreTheSame) {
  Json pairs = SmallTokenizerJson();
  Json strings = pairs;
  for (Json& merge : strings["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  // Vocabulary after merges, and merges before the type: any order of keys.
  const auto a = BpeTokenizer::Create(pairs.dump(), "pairs");
  const auto b = BpeTokenizer::Create(strings.dump(), "strings");
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  std::vector<int32_t> x;
  std::vector<int32_t> y;
  (*a)->Encode("the hell, he said: aaaaa", AddedTokens::kAll, x);
  (*b)->Encode("the hell, he said: aaaaa", AddedTokens::kAll, y);
  EXPECT_EQ(x, y);
}

}  // namespace
}  // namespace banyan
