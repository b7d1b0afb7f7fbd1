// A log line as data: an event and its typed fields, and how they are written.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace banyan {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
enum class LogFormat : uint8_t { kKeyValue, kJson };

std::string_view LogLevelName(LogLevel level);  // "debug", "info", "warning", "error"

std::string_view LogFormatName(LogFormat format);  // "key_value", "json"

// kInvalidArgument names what was given: "debug|info|warning|error"; "key_value|json".
absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name);
absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name);

// What a field holds. Text and statuses are borrowed: temporaries live until the call that logs
// returns, which is all that a field is for.
class LogValue {
 public:
  LogValue(bool value) : value_(value) {}
  template <std::signed_integral T>
  requires(!std::same_as<T, char>) LogValue(T value) : value_(static_cast<int64_t>(value)) {}
  template <std::unsigned_integral T>
  requires(!std::same_as<T, bool> && !std::same_as<T, char>) LogValue(T value)
      : value_(static_cast<uint64_t>(value)) {}
  LogValue(double value) : value_(value) {}  // written with three decimals
  LogValue(const char* text) : value_(std::string_view(text)) {}
  LogValue(std::string_view text) : value_(text) {}
  LogValue(absl::string_view text) : value_(std::string_view(text.data(), text.size())) {}
  LogValue(const std::string& text) : value_(std::string_view(text)) {}
  LogValue(const absl::Status& status) : value_(&status) {}  // "UNAVAILABLE: message"

  // A field that is left out of the line when `text` is empty.
  static LogValue NonEmpty(std::string_view text);

 private:
  friend class LogLineWriter;
  LogValue() = default;
  std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string_view,
               const absl::Status*>
      value_;
};

// Keys are `lower_case` names, distinct within a line and none of time, level, event, service.
struct LogField {
  std::string_view key;
  LogValue value;
};
using LogFields = std::initializer_list<LogField>;

// Longer texts are cut there, with a note of their full length.
inline constexpr size_t kMaxLogTextBytes = 1024;

// One line of printable ASCII without its '\n', whatever bytes the fields hold:
//   key=value  2026-01-31T12:00:00.123+01:00 info load_done tensors=3 path="/a b" name=x\xff
//   json {"time":"2026-01-31T12:00:00.123+01:00","level":"info","event":"load_done","tensors":3}
// In key=value a text with spaces, quotes, '=' or none at all is quoted; bytes outside printable
// ASCII are \xNN. In JSON numbers are numbers (not finite: null), and invalid UTF-8 becomes U+FFFD.
std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          LogFields fields);

}  // namespace banyan
