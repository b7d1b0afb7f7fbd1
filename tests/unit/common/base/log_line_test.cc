#include "common/base/log_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "absl/time/clock.h"

namespace banyan {
namespace {

using nlohmann::json;
using testing::EndsWith;
using testing::HasSubstr;
using testing::MatchesRegex;

std::string Line(LogFormat format, LogFields fields) {
  return FormatLogLine(format, absl::Now(), LogLevel::kInfo, "load_done", fields);
}

json Json(LogFields fields) {
  const std::string line = Line(LogFormat::kJson, fields);
  EXPECT_TRUE(json::accept(line)) << line;
  return json::parse(line);
}

constexpr char kRfc3339[] =
    "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}[+-][0-9]{2}:[0-9]{2}";

TEST(LogLine, KeyValueIsTimeLevelEventAndFields) {
  const absl::Status status = absl::UnavailableError("gone");
  const std::string line = Line(LogFormat::kKeyValue, {{"tensors", 3},
                                                       {"bytes", uint64_t{1} << 63},
                                                       {"seconds", 1.5},
                                                       {"ok", true},
                                                       {"st", status}});
  EXPECT_THAT(line, MatchesRegex(std::string(kRfc3339) + " info load_done .*"));
  EXPECT_THAT(line, EndsWith(" info load_done tensors=3 bytes=9223372036854775808 seconds=1.500 "
                             "ok=true st=\"UNAVAILABLE: gone\""));
}

TEST(LogLine, KeyValueQuotesAndEscapesWhatWouldBreakALine) {
  const auto text = [](std::string_view value) {
    const std::string line = Line(LogFormat::kKeyValue, {{"k", value}});
    return line.substr(line.find(" k=") + 3);
  };
  EXPECT_EQ(text("plain"), "plain");
  EXPECT_EQ(text("unix:/run/e0.sock"), "unix:/run/e0.sock");
  EXPECT_EQ(text(""), "\"\"");
  EXPECT_EQ(text("two words"), "\"two words\"");
  EXPECT_EQ(text("a=b"), "\"a=b\"");
  EXPECT_EQ(text("say \"no\""), "\"say \\\"no\\\"\"");
  EXPECT_EQ(text("a\\b"), "\"a\\\\b\"");
  EXPECT_EQ(text("a\nlevel=error"), "\"a\\nlevel=error\"");
  EXPECT_EQ(text("\x1b[2J\x7f\xff"), "\\x1b[2J\\x7f\\xff");
}

TEST(LogLine, JsonKeepsTypes) {
  const json line = Json({{"tensors", -3},
                          {"bytes", std::numeric_limits<uint64_t>::max()},
                          {"seconds", 0.25},
                          {"nan", std::numeric_limits<double>::quiet_NaN()},
                          {"ok", false},
                          {"text", "3"},
                          {"none", LogValue::NonEmpty("")},
                          {"some", LogValue::NonEmpty("x")}});
  EXPECT_THAT(line["time"].get<std::string>(), MatchesRegex(kRfc3339));
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["event"], "load_done");
  EXPECT_EQ(line["tensors"], -3);
  EXPECT_EQ(line["bytes"], std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(line["seconds"], 0.25);
  EXPECT_TRUE(line["nan"].is_null());
  EXPECT_EQ(line["ok"], false);
  EXPECT_EQ(line["text"], "3");
  EXPECT_FALSE(line.contains("none"));
  EXPECT_EQ(line["some"], "x");
}

TEST(LogLine, JsonMakesInvalidUtf8ValidAndKeepsValid) {
  EXPECT_EQ(Json({{"k", "gr\xc3\xbc\xc3\x9f"}})["k"], "gr\xc3\xbc\xc3\x9f");
  EXPECT_EQ(Json({{"k", "a\xff\"\\\n"}})["k"], "a\xef\xbf\xbd\"\\\n");
  EXPECT_EQ(Json({{"k", std::string_view("\0x", 2)}})["k"], std::string("\0x", 2));
}

TEST(LogLine, IsOnePrintableLineWhateverTheBytes) {
  std::mt19937 rng(1);
  for (int i = 0; i < 2000; ++i) {
    std::string text(rng() % 40, '\0');
    for (char& c : text) c = static_cast<char>(rng());
    for (const LogFormat format : {LogFormat::kKeyValue, LogFormat::kJson}) {
      const std::string line = Line(format, {{"k", text}});
      for (const char c : line) ASSERT_TRUE(c >= 0x20 && c < 0x7f) << line;
      ASSERT_EQ(json::accept(line), format == LogFormat::kJson) << line;
    }
  }
}

TEST(LogLine, CutsLongTextsAndSaysSo) {
  const std::string text(5000, 'x');
  for (const LogFormat format : {LogFormat::kKeyValue, LogFormat::kJson}) {
    const std::string line = Line(format, {{"k", text}});
    EXPECT_THAT(line, HasSubstr("xxx... (5000 bytes)"));
    EXPECT_LT(line.size(), kMaxLogTextBytes + 200);
  }
  // A character cut in two must not make the line invalid.
  EXPECT_THAT(Json({{"k", "x" + std::string(kMaxLogTextBytes - 2, 'x') + "\xc3\xbc"}})["k"]
                  .get<std::string>(),
              HasSubstr("\xef\xbf\xbd... ("));
}

TEST(LogLine, NamesOfLevelsAndFormats) {
  for (const char* name : {"debug", "info", "warning", "error"}) {
    const auto level = ParseLogLevel(name);
    ASSERT_TRUE(level.ok());
    EXPECT_EQ(LogLevelName(*level), name);
  }
  EXPECT_EQ(*ParseLogFormat("json"), LogFormat::kJson);
  EXPECT_EQ(*ParseLogFormat("key_value"), LogFormat::kKeyValue);
  EXPECT_THAT(std::string(ParseLogFormat("xml").status().message()),
              HasSubstr("log format 'xml': expected key_value or json"));
}

}  // namespace
}  // namespace banyan
