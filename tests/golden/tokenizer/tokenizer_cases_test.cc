// The full-size Qwen tokenizer against ids and texts computed by HF tokenizers.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/tokenizer/bpe_tokenizer.h"
#include "common/tokenizer/incremental_decoder.h"

namespace banyan {
namespace {

nlohmann::json ReadJson(const std::string& path) {
  std::ifstream in(path);
  return nlohmann::json::parse(in);
}

TEST(TokenizerCasesTest, EveryCaseEncodesAndDecodesAsTheReference) {
  const std::string directory = std::string(BANYAN_REFERENCE_DATA) + "/qwen-tokenizer";
  const auto tokenizer = BpeTokenizer::Load(directory);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 151669);
  EXPECT_EQ((*tokenizer)->AddedTokenId("<|im_end|>"), 151645);
  EXPECT_TRUE((*tokenizer)->IsSpecial(151645));
  EXPECT_FALSE((*tokenizer)->IsSpecial(151667));
  EXPECT_TRUE((*tokenizer)->IsAdded(151667));
  const nlohmann::json cases = ReadJson(directory + "/cases.json");
  ASSERT_EQ(cases.size(), 1340u);
  int num_failed = 0;
  for (const auto& one : cases) {
    const auto text = one["text"].get<std::string>();
    const auto expected = one["ids"].get<std::vector<int32_t>>();
    std::vector<int32_t> ids;
    (*tokenizer)->Encode(text, AddedTokens::kAll, ids);
    std::string streamed;
    IncrementalDecoder decoder(**tokenizer, /*skip_special=*/false);
    for (const int32_t id : expected) streamed += decoder.Add(id);
    streamed += decoder.Finish();
    const auto decoded = one["decoded"].get<std::string>();
    if (ids != expected || streamed != decoded ||
        (*tokenizer)->Decode(expected, false) != decoded) {
      ++num_failed;
      EXPECT_EQ(ids, expected) << "text: " << text;
      EXPECT_EQ(streamed, decoded);
      EXPECT_EQ((*tokenizer)->Decode(expected, false), decoded);
    }
  }
  EXPECT_EQ(num_failed, 0) << "of " << cases.size();
}

}  // namespace
}  // namespace banyan
