#include "common/tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace banyan {
namespace {

std::vector<std::string> Pieces(std::string_view text) {
  const PreTokenizer pre_tokenizer;
  std::vector<std::string> pieces;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = pre_tokenizer.PieceEnd(text, pos);
    pieces.emplace_back(text.substr(pos, end - pos));
    pos = end;
  }
  return pieces;
}

using P = std::vector<std::string>;

TEST(PreTokenizerTest, SplitsAsTheSpecificationsTable) {
  EXPECT_EQ(Pieces("Hello world"), (P{"Hello", " world"}));
  EXPECT_EQ(Pieces("I'll go, DON'T you're"),
            (P{"I", "'ll", " go", ",", " DON", "'T", " you", "'re"}));
  EXPECT_EQ(Pieces("  leading"), (P{" ", " leading"}));
  EXPECT_EQ(Pieces("foo\n\n  bar"), (P{"foo", "\n\n", " ", " bar"}));
  EXPECT_EQ(Pieces("x\ty"), (P{"x", "\ty"}));
  EXPECT_EQ(Pieces("2024-01"), (P{"2", "0", "2", "4", "-", "0", "1"}));
  EXPECT_EQ(Pieces("价格是100元。"), (P{"价格是", "1", "0", "0", "元", "。"}));
  EXPECT_EQ(Pieces("x=1;\n\nif"), (P{"x", "=", "1", ";\n\n", "if"}));
  EXPECT_EQ(Pieces("   \n  \nabc"), (P{"   \n  \n", "abc"}));
  EXPECT_EQ(Pieces("end  "), (P{"end", "  "}));
  EXPECT_EQ(Pieces("(a)"), (P{"(a", ")"}));
  EXPECT_EQ(Pieces("'Sx"), (P{"'S", "x"}));
  EXPECT_EQ(Pieces("don’t"), (P{"don", "’t"}));
  EXPECT_EQ(Pieces(" \u00a0z"), (P{" ", "\u00a0z"}));
  EXPECT_EQ(Pieces("हिन्दी"), (P{"ह", "िन", "्द", "ी"}));
  EXPECT_EQ(Pieces("🙂🙂 ok"), (P{"🙂🙂", " ok"}));
}

TEST(PreTokenizerTest, BordersOfTheAlternatives) {
  EXPECT_EQ(Pieces("'"), (P{"'"}));
  EXPECT_EQ(Pieces("'r"), (P{"'r"}));  // not 're: an apostrophe before letters
  EXPECT_EQ(Pieces("'LL'vE"), (P{"'LL", "'vE"}));
  EXPECT_EQ(Pieces("'\u017fx"), (P{"'\u017f", "x"}));  // long s is an s
  EXPECT_EQ(Pieces("\r\n"), (P{"\r\n"}));
  EXPECT_EQ(Pieces(" \r\n x"), (P{" \r\n", " x"}));
  EXPECT_EQ(Pieces("\na"), (P{"\n", "a"}));
  EXPECT_EQ(Pieces(" 1"), (P{" ", "1"}));
  EXPECT_EQ(Pieces("  1"), (P{" ", " ", "1"}));
  EXPECT_EQ(Pieces(" !a"), (P{" !", "a"}));
  EXPECT_EQ(Pieces("!\n !"), (P{"!\n", " !"}));
  EXPECT_EQ(Pieces("\u3000\u3000"), (P{"\u3000\u3000"}));
  EXPECT_EQ(Pieces("\u0085\u0085a"), (P{"\u0085", "\u0085a"}));
  EXPECT_EQ(Pieces("²Ⅷ"), (P{"²", "Ⅷ"}));
}

}  // namespace
}  // namespace banyan
