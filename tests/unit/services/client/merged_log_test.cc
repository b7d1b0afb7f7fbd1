#include "services/client/supervisor/merged_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/fakes/temp_dir.h"

namespace banyan::client {
namespace {

using nlohmann::json;

class MergedLogTest : public testing::Test {
 protected:
  std::vector<std::string> Lines() const {
    std::ifstream file(path_);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  const test::TempDir temp_;
  const std::string path_ = temp_.File("server.log");
};

TEST_F(MergedLogTest, KeyValueLinesHaveTheServiceInFront) {
  const auto log = MergedLog::Open(path_, LogFormat::kKeyValue);
  ASSERT_TRUE(log.ok());
  (*log)->Forward("trunk", "2026-01-01T00:00:00.000+00:00 info ready");
  (*log)->Forward("expert 0", "{\"looks\":\"like json\"}");
  (*log)->Event("started", {{"name", "expert 0"}, {"pid", 7}});
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0], "trunk    | 2026-01-01T00:00:00.000+00:00 info ready");
  EXPECT_EQ(lines[1], "expert 0 | {\"looks\":\"like json\"}");
  EXPECT_THAT(lines[2],
              testing::MatchesRegex("serve    \\| .* info started name=\"expert 0\" pid=7"));
}

TEST_F(MergedLogTest, EveryJsonLineIsAnObjectWithItsService) {
  const auto log = MergedLog::Open(path_, LogFormat::kJson);
  ASSERT_TRUE(log.ok());
  (*log)->Forward("trunk", R"({"time":"t","level":"info","event":"ready","seconds":1.500})");
  (*log)->Forward("trunk", "{}");
  (*log)->Forward("expert 0", "CHECK failed: \"x\" at a.cc:1 \xff");
  (*log)->Forward("expert 0", R"({"cut":"off)");
  (*log)->Forward("expert 0", R"({"a":1} {"b":2})");
  (*log)->Event("ended", {{"name", "trunk"}});
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 6u);
  std::vector<json> objects;
  for (const std::string& line : lines) {
    ASSERT_TRUE(json::accept(line)) << line;
    objects.push_back(json::parse(line));
    ASSERT_TRUE(objects.back().is_object());
  }
  EXPECT_EQ(objects[0]["service"], "trunk");
  EXPECT_EQ(objects[0]["seconds"], 1.5);
  EXPECT_EQ(objects[1], json({{"service", "trunk"}}));
  EXPECT_EQ(objects[2]["event"], "output");
  EXPECT_EQ(objects[2]["level"], "warning");
  EXPECT_EQ(objects[2]["text"], "CHECK failed: \"x\" at a.cc:1 \xef\xbf\xbd");
  EXPECT_EQ(objects[3]["text"], R"({"cut":"off)");
  EXPECT_EQ(objects[4]["text"], R"({"a":1} {"b":2})");
  EXPECT_EQ(objects[5]["service"], "serve");
  EXPECT_EQ(objects[5]["event"], "ended");
}

TEST_F(MergedLogTest, ReasonsAreTheWordsOfTheLine) {
  EXPECT_EQ(MergedLog::Reason("banyan-trunk: error: no model"), "banyan-trunk: error: no model");
  EXPECT_EQ(MergedLog::Reason(R"({"event":"failed","error":"no model"})"), "no model");
  EXPECT_EQ(MergedLog::Reason(R"({"event":"stopped"})"), R"({"event":"stopped"})");
  EXPECT_EQ(MergedLog::Reason(R"({"error":7})"), R"({"error":7})");
}

TEST_F(MergedLogTest, SaysWhereItCannotWrite) {
  const auto log = MergedLog::Open("/none/server.log", LogFormat::kJson);
  EXPECT_EQ(log.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(log.status().message()),
              testing::HasSubstr("cannot write the log /none/server.log"));
}

}  // namespace
}  // namespace banyan::client
