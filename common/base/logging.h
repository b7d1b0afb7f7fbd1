// The process's log: one line per event, on stderr.
//   LogInfo("load_done", {{"tensors", n}, {"seconds", seconds}});
// Thread-safe. Nothing per token above debug. The only code that knows spdlog is logging.cc.
#pragma once

#include <atomic>
#include <string_view>

#include "absl/status/status.h"
#include "common/base/log_line.h"

namespace banyan {

// Lines below `level` are not written. May be called at any time from any thread.
void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();
// The same by the names of --log_level and --log_format; an error changes nothing.
absl::Status SetLogLevel(std::string_view level);
absl::Status SetLogFormat(std::string_view format);
LogFormat GetLogFormat();

namespace internal {
inline std::atomic<LogLevel> log_level{LogLevel::kInfo};
}  // namespace internal

// One relaxed load: what a line costs whose level is off, beside the evaluation of its fields.
// Fields that are dear to make (a copy, a name to be formatted) are made behind this.
inline bool LogEnabled(LogLevel level) {
  return level >= internal::log_level.load(std::memory_order_relaxed);
}

// Whatever the level in force: for lines that say that it has changed.
void WriteLog(LogLevel level, std::string_view event, LogFields fields);

inline void Log(LogLevel level, std::string_view event, LogFields fields = {}) {
  if (LogEnabled(level)) WriteLog(level, event, fields);
}
inline void LogDebug(std::string_view event, LogFields fields = {}) {
  if (LogEnabled(LogLevel::kDebug)) WriteLog(LogLevel::kDebug, event, fields);
}
inline void LogInfo(std::string_view event, LogFields fields = {}) {
  if (LogEnabled(LogLevel::kInfo)) WriteLog(LogLevel::kInfo, event, fields);
}
inline void LogWarning(std::string_view event, LogFields fields = {}) {
  if (LogEnabled(LogLevel::kWarning)) WriteLog(LogLevel::kWarning, event, fields);
}
inline void LogError(std::string_view event, LogFields fields = {}) {
  if (LogEnabled(LogLevel::kError)) WriteLog(LogLevel::kError, event, fields);
}

// The end of a program that could not go on: "PROGRAM: error: MESSAGE" on stderr, or in JSON the
// event "failed" with the message as `error`.
void LogFatalExit(std::string_view program, const absl::Status& status);

}  // namespace banyan
