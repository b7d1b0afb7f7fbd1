#include "common/tokenizer/untrusted_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace banyan {
namespace {

using ::testing::HasSubstr;

std::string Error(std::string_view text) {
  const auto json = ParseUntrustedJson(text);
  return json.ok() ? "ok" : std::string(json.status().message());
}

TEST(UntrustedJsonTest, KeepsOrderAndTypes) {
  const std::string text = R"({"z":1,"a":[true,null,-2,1.5,"x"],"m":{}})";
  const auto json = ParseUntrustedJson(text);
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(json->dump(), text);
}

TEST(UntrustedJsonTest, SaysWhereItStopped) {
  EXPECT_THAT(Error("{\"a\": }"), HasSubstr("not valid JSON at byte 7"));
  EXPECT_THAT(Error(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(Error("1 2"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Error("\"\xFF\""), HasSubstr("not valid JSON"));
  EXPECT_THAT(Error("[1e999]"), HasSubstr("not valid JSON"));
}

TEST(UntrustedJsonTest, Limits) {
  EXPECT_EQ(Error(std::string(100, '[') + std::string(100, ']')), "ok");
  EXPECT_THAT(Error(std::string(1000000, '[')), HasSubstr("deeper than 100 levels"));
  std::string keys;
  for (int i = 0; i < 1025; ++i) keys += (i > 0 ? ",\"k" : "\"k") + std::to_string(i) + "\":0";
  EXPECT_THAT(Error("{" + keys + "}"), HasSubstr("more than 1024 keys"));
}

}  // namespace
}  // namespace banyan
