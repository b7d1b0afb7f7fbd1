#include "common/base/logging.h"

#include <gtest/gtest.h>

#include <string>

namespace banyan {
namespace {

TEST(Logging, LevelsByName) {
  ASSERT_TRUE(SetLogLevel("error").ok());
  EXPECT_FALSE(LogEnabled(LogLevel::kWarning));
  EXPECT_TRUE(LogEnabled(LogLevel::kError));
  ASSERT_TRUE(SetLogLevel("debug").ok());
  EXPECT_TRUE(LogEnabled(LogLevel::kDebug));
  ASSERT_TRUE(SetLogLevel("info").ok());
  EXPECT_EQ(SetLogLevel("loud").message(),
            "log level 'loud': expected debug, info, warning or error");
  EXPECT_TRUE(LogEnabled(LogLevel::kInfo)) << "a refused name changes nothing";
}

TEST(Logging, LinesGoToStandardErrorAsTheyAre) {
  ASSERT_TRUE(SetLogLevel("info").ok());
  testing::internal::CaptureStderr();
  LogDebug("hidden value={}", 1);
  LogInfo("load_done tensors={} text={}", 3, "{} %s");
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find(" info load_done tensors=3 text={} %s\n"), std::string::npos) << lines;
  EXPECT_EQ(lines.find("hidden"), std::string::npos) << lines;
}

}  // namespace
}  // namespace banyan
