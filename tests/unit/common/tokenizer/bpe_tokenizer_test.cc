#include "common/tokenizer/bpe_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/tokenizer/bpe_model.h"
#include "tests/unit/common/tokenizer/test_tokenizer.h"

namespace banyan {
namespace {

std::unique_ptr<BpeTokenizer> Small() {
  auto tokenizer = BpeTokenizer::Create(SmallTokenizerJson().dump(), "small");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::vector<std::string> Tokens(const BpeTokenizer& tokenizer, std::string_view text,
                                AddedTokens added = AddedTokens::kAll) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, added, ids);
  std::vector<std::string> tokens;
  for (const int32_t id : ids) tokens.emplace_back(tokenizer.TokenBytes(id));
  return tokens;
}

using T = std::vector<std::string>;

TEST(BpeTokenizerTest, MergesByRankAndLeftmostFirst) {
  const auto tokenizer = Small();
  EXPECT_EQ(Tokens(*tokenizer, "the the hello"), (T{"the", " the", " ", "he", "ll", "o"}));
  EXPECT_EQ(Tokens(*tokenizer, "aaaaaaa"), (T{"aaaa", "aa", "a"}));
  EXPECT_EQ(Tokens(*tokenizer, ""), T{});
}

TEST(BpeTokenizerTest, AddedTokensSplitFirst) {
  const auto tokenizer = Small();
  EXPECT_EQ(Tokens(*tokenizer, "a<|end|><|end<think>he"),
            (T{"a", "<|end|>", "<|en", "d", "<think>", "he"}));
  // What users type: control tokens are ordinary text, the others stay.
  EXPECT_EQ(Tokens(*tokenizer, "<|end|><think>", AddedTokens::kOrdinary),
            (T{"<", "|", "e", "n", "d", "|", ">", "<think>"}));
  EXPECT_EQ(tokenizer->AddedTokenId("<|end|>"), 262);
  EXPECT_EQ(tokenizer->AddedTokenId("he"), -1);
  EXPECT_EQ(tokenizer->vocab_size(), 265);
  EXPECT_TRUE(tokenizer->IsSpecial(263));
  EXPECT_TRUE(tokenizer->IsAdded(264));
  EXPECT_FALSE(tokenizer->IsSpecial(264));
  for (const int32_t id : {-1, 265, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsAdded(id));
  }
}

TEST(BpeTokenizerTest, SpansAreOneTextWithTrustedParts) {
  const auto tokenizer = Small();
  const auto encode = [&](std::vector<TextSpan> spans) {
    std::vector<int32_t> ids;
    tokenizer->EncodeSpans(spans, ids);
    std::vector<std::string> tokens;
    for (const int32_t id : ids) tokens.emplace_back(tokenizer->TokenBytes(id));
    return tokens;
  };
  constexpr auto kAll = AddedTokens::kAll;
  constexpr auto kUser = AddedTokens::kOrdinary;
  EXPECT_EQ(encode({{"t", kAll}, {"he", kUser}}), T{"the"});
  EXPECT_EQ(encode({{"<|e", kAll}, {"nd|>", kAll}}), T{"<|end|>"});
  EXPECT_EQ(encode({{"<|e", kAll}, {"nd|>", kUser}}), (T{"<", "|", "e", "n", "d", "|", ">"}));
  EXPECT_EQ(encode({{"<|en", kAll}, {"d|>", kUser}}), (T{"<|en", "d", "|", ">"}));
  EXPECT_EQ(encode({{"<thi", kAll}, {"nk>", kUser}}), T{"<think>"});
  EXPECT_EQ(encode({{"<|end|>", kUser}, {"<|end|>", kAll}}).back(), "<|end|>");
  EXPECT_EQ(encode({{"\xE4", kAll}, {"\xBD\xA0", kUser}}).size(), 9u);  // three times U+FFFD
  EXPECT_EQ(encode({}), T{});
}

TEST(BpeTokenizerTest, InvalidUtf8IsReplaced) {
  const auto tokenizer = Small();
  EXPECT_EQ(Tokens(*tokenizer, "a\xFF"), Tokens(*tokenizer, "a\xEF\xBF\xBD"));
  std::vector<int32_t> ids;
  tokenizer->Encode("e\xCC\x81", AddedTokens::kAll, ids);  // NFC: one character, two bytes
  EXPECT_EQ(tokenizer->Decode(ids, false), "\xC3\xA9");
}

// An entry that its own merges never reach stays unreachable, however often it is asked for.
TEST(BpeTokenizerTest, EntriesOutOfReachOfTheMergesAreNotUsed) {
  nlohmann::json json = SmallTokenizerJson({{"b", "c"}, {"a", "b"}, {"ab", "c"}});
  const auto tokenizer = BpeTokenizer::Create(json.dump(), "unreachable");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Tokens(**tokenizer, "abc"), (T{"a", "bc"}));
}

// Merges as the definition says: again and again the pair of lowest rank, leftmost first.
std::vector<std::string> DefinitionMerge(
    const std::vector<std::pair<std::string, std::string>>& merges, std::string_view piece) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t i = 0; i < merges.size(); ++i) ranks[merges[i]] = i;
  std::vector<std::string> symbols;
  for (const char c : piece) symbols.emplace_back(1, c);
  while (true) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = ranks.find({symbols[i], symbols[i + 1]});
      if (it != ranks.end() && it->second < best_rank) {
        best_rank = it->second;
        best = i;
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BpeTokenizerTest, ShortAndLongPiecesMergeAsDefined) {
  const uint32_t seed = 20240607;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<std::string> entries = {"a", "b", "c", "d"};
  std::vector<std::pair<std::string, std::string>> merges;
  while (merges.size() < 60) {
    const std::string left = entries[random() % entries.size()];
    const std::string right = entries[random() % entries.size()];
    const std::pair<std::string, std::string> merge(left, right);
    if (left.size() + right.size() > 9) continue;
    if (std::find(merges.begin(), merges.end(), merge) != merges.end()) continue;
    merges.push_back(merge);
    if (std::find(entries.begin(), entries.end(), left + right) == entries.end()) {
      entries.push_back(left + right);
    }
  }
  const auto tokenizer = BpeTokenizer::Create(SmallTokenizerJson(merges).dump(), "random");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (int i = 0; i < 2000; ++i) {
    std::string piece(1 + random() % (i % 10 == 0 ? 300 : 70), ' ');
    for (char& c : piece) c = static_cast<char>('a' + random() % 4);
    ASSERT_EQ(Tokens(**tokenizer, piece), DefinitionMerge(merges, piece)) << piece;
  }
}

TEST(BpeTokenizerTest, ThreadsShareOneTokenizer) {
  const auto tokenizer = Small();
  const std::string text = "the hell aa <|end|> he the aaaa";
  std::vector<int32_t> expected;
  Small()->Encode(text, AddedTokens::kAll, expected);
  std::vector<std::thread> threads;
  std::vector<int> failures(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        std::vector<int32_t> ids;
        tokenizer->Encode(text, AddedTokens::kAll, ids);
        if (ids != expected) ++failures[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, std::vector<int>(4, 0));
}

// A megabyte without a border is one piece; O(n^2) would take minutes.
TEST(BpeTokenizerTest, OneLongPiece) {
  const auto tokenizer = Small();
  std::vector<int32_t> ids;
  tokenizer->Encode(std::string(1 << 20, 'a'), AddedTokens::kAll, ids);
  EXPECT_EQ(ids.size(), (1u << 20) / 4);
}

}  // namespace
}  // namespace banyan
