#include "common/base/log_line.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr LogLevel kLevels[] = {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning,
                                LogLevel::kError};

std::string Cut(std::string_view text) {
  std::string out(text.substr(0, kMaxLogTextBytes));
  if (text.size() > kMaxLogTextBytes) {
    fmt::format_to(std::back_inserter(out), "... ({} bytes)", text.size());
  }
  return out;
}

bool NeedsQuotes(std::string_view text) {
  return text.empty() || text.find_first_of(" \"\\=") != std::string_view::npos;
}

void AppendKeyValueText(std::string_view text, std::string& line) {
  const bool quoted = NeedsQuotes(text);
  if (quoted) line.push_back('"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      line.push_back('\\');
      line.push_back(c);
    } else if (c == '\n') {
      line += "\\n";
    } else if (byte < 0x20 || byte >= 0x7f) {
      fmt::format_to(std::back_inserter(line), "\\x{:02x}", byte);
    } else {
      line.push_back(c);
    }
  }
  if (quoted) line.push_back('"');
}

void AppendJsonText(std::string_view text, std::string& line) {
  line += nlohmann::json(text).dump(-1, ' ', /*ensure_ascii=*/true,
                                    nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string_view LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

std::string_view LogFormatName(LogFormat format) {
  return format == LogFormat::kJson ? "json" : "key_value";
}

absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name) {
  for (const LogLevel level : kLevels) {
    if (name == LogLevelName(level)) return level;
  }
  return InvalidArgumentF("log level '{}': expected debug, info, warning or error",
                          Printable(name, 40));
}

absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name) {
  for (const LogFormat format : {LogFormat::kKeyValue, LogFormat::kJson}) {
    if (name == LogFormatName(format)) return format;
  }
  return InvalidArgumentF("log format '{}': expected key_value or json", Printable(name, 40));
}

LogValue LogValue::NonEmpty(std::string_view text) {
  return text.empty() ? LogValue() : LogValue(text);
}

class LogLineWriter {
 public:
  LogLineWriter(LogFormat format, absl::Time time, LogLevel level, std::string_view event)
      : format_(format) {
    const std::string when =
        absl::FormatTime("%Y-%m-%dT%H:%M:%E3S%Ez", time, absl::LocalTimeZone());
    if (format == LogFormat::kJson) {
      line_ = fmt::format(R"({{"time":"{}","level":"{}","event":)", when, LogLevelName(level));
      AppendJsonText(event, line_);
    } else {
      line_ = fmt::format("{} {} {}", when, LogLevelName(level), event);
    }
  }

  void Add(const LogField& field) {
    if (std::holds_alternative<std::monostate>(field.value.value_)) return;
    if (format_ == LogFormat::kJson) {
      line_.push_back(',');
      AppendJsonText(field.key, line_);
      line_.push_back(':');
    } else {
      line_.push_back(' ');
      line_ += field.key;
      line_.push_back('=');
    }
    std::visit([this](const auto& value) { Append(value); }, field.value.value_);
  }

  std::string Take() && {
    if (format_ == LogFormat::kJson) line_.push_back('}');
    return std::move(line_);
  }

 private:
  void Append(std::monostate) {}
  void Append(bool value) { line_ += value ? "true" : "false"; }
  void Append(int64_t value) { fmt::format_to(std::back_inserter(line_), "{}", value); }
  void Append(uint64_t value) { fmt::format_to(std::back_inserter(line_), "{}", value); }
  void Append(double value) {
    if (format_ == LogFormat::kJson && !std::isfinite(value)) {
      line_ += "null";
    } else {
      fmt::format_to(std::back_inserter(line_), "{:.3f}", value);
    }
  }
  void Append(std::string_view text) {
    if (format_ == LogFormat::kJson) {
      AppendJsonText(Cut(text), line_);
    } else {
      AppendKeyValueText(Cut(text), line_);
    }
  }
  void Append(const absl::Status* status) { Append(std::string_view(status->ToString())); }

  const LogFormat format_;
  std::string line_;
};

std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          LogFields fields) {
  LogLineWriter writer(format, time, level, event);
  for (const LogField& field : fields) writer.Add(field);
  return std::move(writer).Take();
}

}  // namespace banyan
