// Log lines are `event key=value ...`: LogInfo("load_done tensors={} seconds={:.2f}", n, s).
// Thread-safe. Nothing per token above debug. The only code that knows spdlog is logging.cc.
#pragma once

#include <fmt/format.h>

#include <string_view>

#include "absl/status/status.h"

namespace banyan {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// "debug" | "info" | "warning" | "error"; kInvalidArgument names what was given.
absl::Status SetLogLevel(std::string_view level);
bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, std::string_view line);

template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kDebug))
    LogLine(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kInfo))
    LogLine(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kWarning))
    LogLine(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kError))
    LogLine(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace banyan
