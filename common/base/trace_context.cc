#include "common/base/trace_context.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr size_t kTraceIdAt = 3, kTraceIdBytes = 32;
constexpr size_t kParentIdAt = 36, kParentIdBytes = 16;
constexpr size_t kFlagsAt = 53;
constexpr unsigned kKnownFlags = 0x03;  // sampled; random trace id (level 2)

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return HexDigit(c) >= 0; });
}

bool IsZero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

absl::Status Wrong(std::string_view header, std::string_view why) {
  return InvalidArgumentF("traceparent '{}': {}", Printable(header, 80), why);
}

}  // namespace

absl::StatusOr<std::string> ParseTraceparent(std::string_view header) {
  const std::string_view version = header.substr(0, 2);
  if (version.size() < 2 || !IsHex(version) || version == "ff") {
    return Wrong(header, "expected a version of two lower-case hex digits, not ff");
  }
  const bool later = version != "00";
  if (header.size() < kTraceparentBytes || (!later && header.size() > kTraceparentBytes) ||
      (header.size() > kTraceparentBytes && header[kTraceparentBytes] != '-')) {
    return Wrong(header, "expected 55 characters, more only after '-' in a later version");
  }
  const std::string_view trace_id = header.substr(kTraceIdAt, kTraceIdBytes);
  const std::string_view parent_id = header.substr(kParentIdAt, kParentIdBytes);
  const std::string_view flags = header.substr(kFlagsAt, 2);
  if (header[2] != '-' || header[kParentIdAt - 1] != '-' || header[kFlagsAt - 1] != '-' ||
      !IsHex(trace_id) || !IsHex(parent_id) || !IsHex(flags)) {
    return Wrong(header, "expected 2, 32, 16 and 2 lower-case hex digits with '-' between them");
  }
  if (IsZero(trace_id) || IsZero(parent_id)) return Wrong(header, "an id of zeros");
  const unsigned known = static_cast<unsigned>(HexDigit(flags[1])) & kKnownFlags;
  return fmt::format("00-{}-{}-{:02x}", trace_id, parent_id, known);
}

std::string_view TraceId(std::string_view traceparent) {
  return traceparent.size() < kTraceparentBytes ? std::string_view()
                                                : traceparent.substr(kTraceIdAt, kTraceIdBytes);
}

bool IsRequestId(std::string_view text) {
  return !text.empty() && text.size() <= kMaxRequestIdBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

bool AppendTrace(const TraceEntry& entry, std::string* trace) {
  const size_t bytes =
      entry.request_id.size() + 1 + (entry.traceparent.empty() ? 0 : 1 + entry.traceparent.size());
  if (trace->size() + bytes > kMaxTraceBytes) return false;
  trace->append(entry.request_id);
  if (!entry.traceparent.empty()) trace->append(" ").append(entry.traceparent);
  trace->append("\n");
  return true;
}

absl::StatusOr<std::vector<TraceEntry>> ParseTrace(std::string_view trace) {
  if (trace.size() > kMaxTraceBytes) {
    return InvalidArgumentF("trace of {} bytes, expected at most {}", trace.size(), kMaxTraceBytes);
  }
  std::vector<TraceEntry> entries;
  while (!trace.empty()) {
    const size_t end = trace.find('\n');
    if (end == std::string_view::npos) {
      return InvalidArgumentF("trace: line {} does not end", entries.size());
    }
    const std::string_view line = trace.substr(0, end);
    trace.remove_prefix(end + 1);
    const size_t space = line.find(' ');
    TraceEntry entry{line.substr(0, space), {}};
    if (!IsRequestId(entry.request_id)) {
      return InvalidArgumentF(
          "trace: line {} is '{}', expected a request id of 1 to {} printable "
          "characters first",
          entries.size(), Printable(line, 40), kMaxRequestIdBytes);
    }
    if (space != std::string_view::npos) {
      entry.traceparent = line.substr(space + 1);
      ASSIGN_OR_RETURN(const std::string canonical, ParseTraceparent(entry.traceparent));
      if (canonical != entry.traceparent) {
        return InvalidArgumentF("trace: '{}', expected a traceparent of version 00",
                                Printable(entry.traceparent, 80));
      }
    }
    entries.push_back(entry);
  }
  return entries;
}

}  // namespace banyan
