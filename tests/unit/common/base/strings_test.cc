#include "common/base/strings.h"

#include <gtest/gtest.h>

#include <string>

namespace banyan {
namespace {

TEST(Strings, BridgesBothViews) {
  const std::string text("a\0b", 3);
  EXPECT_EQ(ToAbsl(text).size(), 3u);
  EXPECT_EQ(ToAbsl(text).data(), text.data());
  EXPECT_EQ(ToStd(ToAbsl(text)), std::string_view(text));
  EXPECT_TRUE(ToStd(ToAbsl({})).empty());
}

TEST(Strings, StatusesCarryCodeAndText) {
  EXPECT_EQ(StatusF(absl::StatusCode::kUnavailable, "{} of {}", 1, "x"),
            absl::UnavailableError("1 of x"));
  EXPECT_EQ(InvalidArgumentF("{}", "{}"), absl::InvalidArgumentError("{}"));
  EXPECT_EQ(DataLossF("a"), absl::DataLossError("a"));
  EXPECT_EQ(FailedPreconditionF("{:02}", 7), absl::FailedPreconditionError("07"));
}

TEST(Strings, AnnotateKeepsCodeAndOk) {
  EXPECT_TRUE(Annotate(absl::OkStatus(), "loading").ok());
  EXPECT_EQ(Annotate(absl::NotFoundError("no file"), "loading"),
            absl::NotFoundError("loading: no file"));
}

TEST(Strings, PrintableIsAsciiAndBounded) {
  EXPECT_EQ(Printable("model.norm 'x' \\ \"y\"~"), "model.norm 'x' \\ \"y\"~");
  EXPECT_EQ(Printable(std::string_view("\0\n\x1f\x7f\xc3\xa9", 6)),
            "\\x00\\x0a\\x1f\\x7f\\xc3\\xa9");
  EXPECT_EQ(Printable(""), "");
  EXPECT_EQ(Printable("abcdef", 6), "abcdef");
  EXPECT_EQ(Printable("abcdefg", 6), "abcdef... (7 bytes)");
}

}  // namespace
}  // namespace banyan
