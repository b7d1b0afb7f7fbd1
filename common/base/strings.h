// The one bridge between absl::string_view and std::string_view (Debian's abseil keeps them apart),
// and statuses with fmt-formatted messages.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace banyan {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view ToStd(absl::string_view text) { return {text.data(), text.size()}; }

// StatusF(absl::StatusCode::kDataLoss, "{}: header length {}", path, length)
template <typename... Args>
absl::Status StatusF(absl::StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
absl::Status InvalidArgumentF(fmt::format_string<Args...> format, Args&&... args) {
  return StatusF(absl::StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}

template <typename... Args>
absl::Status DataLossF(fmt::format_string<Args...> format, Args&&... args) {
  return StatusF(absl::StatusCode::kDataLoss, format, std::forward<Args>(args)...);
}

template <typename... Args>
absl::Status FailedPreconditionF(fmt::format_string<Args...> format, Args&&... args) {
  return StatusF(absl::StatusCode::kFailedPrecondition, format, std::forward<Args>(args)...);
}

// TEXT for a message: quotes and backslashes kept, control and non-ASCII bytes as \xNN, cut after
// `max_bytes` with a note of the full length. For names that a file or a peer chose.
inline std::string Printable(std::string_view text, size_t max_bytes = 160) {
  std::string out;
  for (char c : text.substr(0, max_bytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", byte);
    } else {
      out.push_back(c);
    }
  }
  if (text.size() > max_bytes) {
    fmt::format_to(std::back_inserter(out), "... ({} bytes)", text.size());
  }
  return out;
}

// The same status with "context: " put before its message; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), fmt::format("{}: {}", context, ToStd(status.message())));
}

}  // namespace banyan
