#include "common/tokenizer/added_tokens.h"

#include <gtest/gtest.h>

namespace banyan {
namespace {

TEST(AddedTokenMatcherTest, LeftmostThenLongestThenTrust) {
  AddedTokenMatcher matcher;
  matcher.Add("<a", 1, /*special=*/false);
  matcher.Add("<ab>", 2, /*special=*/true);
  matcher.Add("ab>c", 3, /*special=*/true);
  const std::string_view text = "x<ab>c";
  const auto find = [&](size_t pos, std::vector<AddedTokenMatcher::Range> trusted) {
    size_t range_idx = 0;
    return matcher.Find(text, pos, trusted, range_idx);
  };
  EXPECT_EQ(find(0, {{0, 6}}).id, 2);
  EXPECT_EQ(find(0, {{0, 6}}).begin, 1u);
  EXPECT_EQ(find(0, {{1, 5}}).id, 2);
  EXPECT_EQ(find(0, {{1, 4}, {5, 6}}).id, 1);  // not all of <ab> is trusted
  EXPECT_EQ(find(0, {{2, 6}}).id, 1);
  EXPECT_EQ(find(0, {}).id, 1);
  EXPECT_EQ(find(2, {{0, 6}}).id, 3);
  EXPECT_EQ(find(2, {}).length, 0u);
  EXPECT_EQ(find(3, {{0, 6}}).begin, text.size());
  EXPECT_EQ(matcher.IdOf("<ab>"), 2);
  EXPECT_EQ(matcher.IdOf("<ab"), -1);
  EXPECT_EQ(matcher.IdOf("zz"), -1);
}

}  // namespace
}  // namespace banyan
