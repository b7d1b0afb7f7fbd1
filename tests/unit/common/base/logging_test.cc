#include "common/base/logging.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "common/base/log_level_signals.h"

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

TEST(Logging, LinesGoToStandardErrorInTheFormatChosen) {
  ASSERT_TRUE(SetLogLevel("info").ok());
  testing::internal::CaptureStderr();
  LogDebug("hidden", {{"value", 1}});
  LogInfo("load_done", {{"tensors", 3}, {"text", "{} %s"}});
  ASSERT_TRUE(SetLogFormat("json").ok());
  LogWarning("load_done", {{"tensors", 3}});
  EXPECT_FALSE(SetLogFormat("xml").ok());
  EXPECT_EQ(GetLogFormat(), LogFormat::kJson) << "a refused name changes nothing";
  LogFatalExit("banyan-x", absl::NotFoundError("no model"));
  ASSERT_TRUE(SetLogFormat("key_value").ok());
  LogFatalExit("banyan-x", absl::NotFoundError("no model"));
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find(" info load_done tensors=3 text=\"{} %s\"\n"), std::string::npos) << lines;
  EXPECT_NE(lines.find("\"level\":\"warning\",\"event\":\"load_done\",\"tensors\":3}\n"),
            std::string::npos)
      << lines;
  EXPECT_NE(lines.find("\"event\":\"failed\",\"error\":\"no model\"}\n"), std::string::npos)
      << lines;
  EXPECT_NE(lines.find("banyan-x: error: no model\n"), std::string::npos) << lines;
  EXPECT_EQ(lines.find("hidden"), std::string::npos) << lines;
}

TEST(Logging, SignalsStepTheLevelUpToItsEnds) {
  SetLogLevel(LogLevel::kInfo);
  EXPECT_EQ(StepLogLevel(SIGUSR1).to, LogLevel::kDebug);
  EXPECT_EQ(StepLogLevel(SIGUSR1).to, LogLevel::kDebug);
  EXPECT_EQ(StepLogLevel(SIGUSR2).to, LogLevel::kInfo);
  EXPECT_EQ(StepLogLevel(SIGUSR2).to, LogLevel::kWarning);
  EXPECT_EQ(StepLogLevel(SIGUSR2).to, LogLevel::kError);
  EXPECT_EQ(StepLogLevel(SIGUSR2).to, LogLevel::kError);
  EXPECT_EQ(StepLogLevel(SIGUSR1).to, LogLevel::kWarning);
  EXPECT_EQ(GetLogLevel(), LogLevel::kWarning);
  SetLogLevel(LogLevel::kInfo);
}

}  // namespace
}  // namespace banyan
