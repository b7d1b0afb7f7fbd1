// Where a request comes from: W3C Trace Context (https://www.w3.org/TR/trace-context/) and the list
// of requests that a step tells the experts about.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace banyan {

inline constexpr size_t kTraceparentBytes = 55;
inline constexpr size_t kMaxRequestIdBytes = 128;

// A `traceparent` as a client sent it, checked by the standard's rules: version, lengths,
// lower-case hex, no id of zeros. Returns what is carried on, in version 00 and with only the flags
// that it defines: "00-<32 hex trace id>-<16 hex parent id>-0[0-3]". A later version is read as far
// as 00 goes, as the standard asks. kInvalidArgument says what is wrong; the header then counts as
// absent.
absl::StatusOr<std::string> ParseTraceparent(std::string_view header);

// The 32 digits of a parsed traceparent; "" of "".
std::string_view TraceId(std::string_view traceparent);

// 1..128 bytes of printable ASCII without spaces, so that it can stand in a log line.
bool IsRequestId(std::string_view text);

// ForwardRequest.trace: a line "<request_id>\n" or "<request_id> <traceparent>\n" for each request
// that joins with this step.
inline constexpr size_t kMaxTraceBytes = 4096;

struct TraceEntry {
  std::string_view request_id;
  std::string_view traceparent;  // "": none
};

// Appends a line. False, and `trace` unchanged, when it would not fit.
bool AppendTrace(const TraceEntry& entry, std::string* trace);

// The lines of a trace that a peer sent; the entries borrow from it. kInvalidArgument: too long, no
// '\n' at the end, a line that is not as above.
absl::StatusOr<std::vector<TraceEntry>> ParseTrace(std::string_view trace);

}  // namespace banyan
