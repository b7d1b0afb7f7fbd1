// The log of `banyan serve`: the lines of all its services and its own, in one file.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/base/log_line.h"

namespace banyan::client {

// Owned by one thread. In key=value a line reads "expert 0 | <the service's line>". In JSON every
// line is one object with the key `service` in front; what a service says that is no object (the
// last words of a crash) becomes the event "output" with its `text`.
class MergedLog {
 public:
  // Appends to `path`; kFailedPrecondition when it cannot be written.
  static absl::StatusOr<std::unique_ptr<MergedLog>> Open(const std::string& path, LogFormat format);
  ~MergedLog();
  MergedLog(const MergedLog&) = delete;
  MergedLog& operator=(const MergedLog&) = delete;

  // A line that `service` has written, without its '\n'.
  void Forward(std::string_view service, std::string_view line);
  // A line of the supervisor's own, at info.
  void Event(std::string_view event, LogFields fields);

  // What `line` says of why a service ended: the `error` or `text` of a JSON line, else itself.
  static std::string Reason(std::string_view line);

 private:
  MergedLog(int fd, LogFormat format) : fd_(fd), format_(format) {}
  void Write(std::string line);

  const int fd_;
  const LogFormat format_;
};

}  // namespace banyan::client
