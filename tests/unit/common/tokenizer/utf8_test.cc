#include "common/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include "common/tokenizer/unicode_tables.h"

namespace banyan {
namespace {

std::string Sanitize(std::string_view text) {
  std::string out;
  EXPECT_EQ(AppendSanitized(text, /*keep_incomplete=*/false, out), text.size());
  return out;
}

TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(Sanitize("plain \xE4\xBD\xA0"), "plain \xE4\xBD\xA0");
  EXPECT_EQ(Sanitize("\xFF"
                     "a"),
            r + "a");
  EXPECT_EQ(Sanitize("\xC0\x80"), r + r);          // overlong
  EXPECT_EQ(Sanitize("\xE0\x80\x80"), r + r + r);  // overlong: E0 wants A0..BF next
  EXPECT_EQ(Sanitize("\xED\xA0\x80"), r + r + r);  // surrogate
  EXPECT_EQ(Sanitize("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(Sanitize("\xF0\x9F\x98"
                     "z"),
            r + "z");  // one for the whole beginning
  EXPECT_EQ(Sanitize("\xE4\xBD"), r);
  EXPECT_EQ(Sanitize("\xE4\xBD\xE4\xBD\xA0"), r + "\xE4\xBD\xA0");
  EXPECT_EQ(Sanitize("\xF5\x80"), r + r);
}

TEST(Utf8Test, KeepsAnIncompleteEndWhenAsked) {
  for (const std::string_view part : {"\xE4", "\xE4\xBD", "\xF0\x9F\x98", "\xC3"}) {
    std::string out;
    const std::string text = "ab" + std::string(part);
    EXPECT_EQ(AppendSanitized(text, /*keep_incomplete=*/true, out), 2u);
    EXPECT_EQ(out, "ab");
  }
  std::string out;
  EXPECT_EQ(AppendSanitized("ab\xFF", true, out), 3u);
  EXPECT_EQ(out, "ab" + std::string(kReplacementCharacter));
}

TEST(Utf8Test, EveryCodePointRoundTrips) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, text);
    const DecodedCharacter decoded = DecodeCharacter(text, 0);
    int32_t num_bytes;
    ASSERT_TRUE(decoded.valid && decoded.code_point == c) << c;
    ASSERT_EQ(decoded.num_bytes, static_cast<int32_t>(text.size()));
    ASSERT_EQ(DecodeValid(text, 0, num_bytes), c);
    ASSERT_EQ(num_bytes, decoded.num_bytes);
  }
}

TEST(UnicodeTablesTest, NormalizesToNfc) {
  std::string buffer;
  const std::string_view ascii = "ascii";
  EXPECT_EQ(NormalizeNfc(ascii, buffer).data(), ascii.data());
  EXPECT_EQ(NormalizeNfc("e\xCC\x81", buffer), "\xC3\xA9");
  EXPECT_EQ(NormalizeNfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", buffer), "\xEA\xB0\x81");
  EXPECT_EQ(NormalizeNfc("\xE2\x84\xAB", buffer), "\xC3\x85");  // Angstrom sign
}

}  // namespace
}  // namespace banyan
