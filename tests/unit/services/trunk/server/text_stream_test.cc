#include "services/trunk/server/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace banyan::trunk {
namespace {

struct Result {
  std::string text;
  std::string match;
  friend bool operator==(const Result& a, const Result& b) {
    return a.text == b.text && a.match == b.match;
  }
};

// The definition, by search: the match that ends first, of those the longest.
Result Expected(const std::string& text, const std::vector<std::string>& stop) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* found = nullptr;
    for (const std::string& s : stop) {
      if (s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0 &&
          (found == nullptr || s.size() > found->size())) {
        found = &s;
      }
    }
    if (found != nullptr) return {text.substr(0, end - found->size()), *found};
  }
  return {text, ""};
}

Result Streamed(const std::vector<std::string>& pieces, const std::vector<std::string>& stop) {
  StopMatcher matcher(stop);
  Result result;
  for (const std::string& piece : pieces) {
    if (matcher.Add(piece, result.text)) {
      result.match = matcher.match();
      return result;
    }
  }
  result.text += matcher.TakeHeld();
  return result;
}

TEST(StopMatcherTest, AcrossBordersOfPieces) {
  EXPECT_EQ(Streamed({"Hello, wo", "rl", "d! And", " more"}, {"world!"}),
            (Result{"Hello, ", "world!"}));
  EXPECT_EQ(Streamed({"a", "a", "b"}, {"ab"}), (Result{"a", "ab"}));
  EXPECT_EQ(Streamed({"abab", "ac"}, {"ababac"}), (Result{"", "ababac"}));
  EXPECT_EQ(Streamed({"ababab", "ac"}, {"ababac"}), (Result{"ab", "ababac"}));
}

TEST(StopMatcherTest, HoldsBackOnlyWhatCanStillMatch) {
  StopMatcher matcher({"\n\n", "END"});
  std::string out;
  EXPECT_FALSE(matcher.Add("one\n", out));
  EXPECT_EQ(out, "one");
  EXPECT_FALSE(matcher.Add("two E", out));
  EXPECT_EQ(out, "one\ntwo ");
  EXPECT_FALSE(matcher.Add("N", out));
  EXPECT_EQ(out, "one\ntwo ");
  EXPECT_FALSE(matcher.Add("E", out));
  EXPECT_EQ(out, "one\ntwo EN");
  EXPECT_EQ(matcher.TakeHeld(), "E");
}

TEST(StopMatcherTest, NestedAndEqualEnds) {
  EXPECT_EQ(Streamed({"xabcd"}, {"abcd", "bc"}), (Result{"xa", "bc"}));
  EXPECT_EQ(Streamed({"xabc"}, {"bc", "abc", "c"}), (Result{"x", "abc"}));
}

TEST(StopMatcherTest, WithoutStopStringsNothingIsHeld) {
  StopMatcher matcher({});
  std::string out;
  EXPECT_FALSE(matcher.Add("anything\n", out));
  EXPECT_EQ(out, "anything\n");
}

TEST(StopMatcherTest, EqualsSearchWhateverThePieces) {
  constexpr uint32_t kSeed = 20260101;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  const auto pick = [&random](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const auto word = [&](int length) {
    std::string out;
    for (int i = 0; i < length; ++i) out.push_back(static_cast<char>('a' + pick(0, 1)));
    return out;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stop;
    for (int i = pick(1, 4); i > 0; --i) stop.push_back(word(pick(1, 7)));
    std::vector<std::string> pieces;
    std::string text;
    for (int i = pick(0, 12); i > 0; --i) {
      pieces.push_back(word(pick(0, 4)));
      text += pieces.back();
    }
    const Result expected = Expected(text, stop);
    const Result streamed = Streamed(pieces, stop);
    ASSERT_EQ(streamed.text, expected.text) << text;
    ASSERT_EQ(streamed.match, expected.match) << text;
  }
}

TEST(TextStreamTest, WithoutTokenizerThereIsNoText) {
  TextStream stream(nullptr, {});
  std::string out;
  EXPECT_FALSE(stream.Add(7, out));
  stream.Finish(out);
  EXPECT_EQ(out, "");
}

}  // namespace
}  // namespace banyan::trunk
