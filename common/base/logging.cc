#include "common/base/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

std::atomic<LogFormat> log_format{LogFormat::kKeyValue};

// Lines go to stderr, so that the standard output of a command stays its result. Never destroyed:
// threads of libraries may log while the process exits. Levels are checked in the header.
spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    auto* made = new spdlog::logger("banyan", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *logger;
}

}  // namespace

void SetLogLevel(LogLevel level) { internal::log_level.store(level, std::memory_order_relaxed); }

LogLevel GetLogLevel() { return internal::log_level.load(std::memory_order_relaxed); }

absl::Status SetLogLevel(std::string_view level) {
  ASSIGN_OR_RETURN(const LogLevel parsed, ParseLogLevel(level));
  SetLogLevel(parsed);
  return absl::OkStatus();
}

absl::Status SetLogFormat(std::string_view format) {
  ASSIGN_OR_RETURN(const LogFormat parsed, ParseLogFormat(format));
  log_format.store(parsed, std::memory_order_relaxed);
  return absl::OkStatus();
}

LogFormat GetLogFormat() { return log_format.load(std::memory_order_relaxed); }

void WriteLog(LogLevel level, std::string_view event, LogFields fields) {
  const std::string line = FormatLogLine(GetLogFormat(), absl::Now(), level, event, fields);
  Logger().log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
}

void LogFatalExit(std::string_view program, const absl::Status& status) {
  if (GetLogFormat() == LogFormat::kJson) {
    WriteLog(LogLevel::kError, "failed", {{"error", status.message()}});
  } else {
    fmt::print(stderr, "{}: error: {}\n", program, ToStd(status.message()));
  }
}

}  // namespace banyan
