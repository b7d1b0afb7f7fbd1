#include "services/client/supervisor/merged_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/memory/memory.h"
#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/base/strings.h"

namespace banyan::client {
namespace {

constexpr char kOwnName[] = "serve";

std::string WithService(std::string_view service, std::string_view object) {
  const std::string_view rest = object.substr(1);
  return fmt::format(R"({{"service":{}{}{})", nlohmann::json(service).dump(),
                     rest == "}" ? "" : ",", rest);
}

// Objects as the services write them: nothing before the brace.
bool IsObject(std::string_view line) {
  return !line.empty() && line.front() == '{' && nlohmann::json::accept(line);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MergedLog>> MergedLog::Open(const std::string& path,
                                                           LogFormat format) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return FailedPreconditionF("cannot write the log {}: {}", path, strerror(errno));
  return absl::WrapUnique(new MergedLog(fd, format));
}

MergedLog::~MergedLog() { close(fd_); }

void MergedLog::Write(std::string line) {
  line.push_back('\n');
  // A full disk must not end the service: what cannot be written is lost.
  [[maybe_unused]] const ssize_t written = write(fd_, line.data(), line.size());
}

void MergedLog::Forward(std::string_view service, std::string_view line) {
  if (format_ == LogFormat::kKeyValue) {
    Write(fmt::format("{:<8} | {}", service, line));
  } else if (IsObject(line)) {
    Write(WithService(service, line));
  } else {
    Write(WithService(service, FormatLogLine(format_, absl::Now(), LogLevel::kWarning, "output",
                                             {{"text", line}})));
  }
}

void MergedLog::Event(std::string_view event, LogFields fields) {
  const std::string line = FormatLogLine(format_, absl::Now(), LogLevel::kInfo, event, fields);
  Write(format_ == LogFormat::kKeyValue ? fmt::format("{:<8} | {}", kOwnName, line)
                                        : WithService(kOwnName, line));
}

std::string MergedLog::Reason(std::string_view line) {
  if (!IsObject(line)) return std::string(line);
  const nlohmann::json object = nlohmann::json::parse(line);
  for (const char* key : {"error", "text"}) {
    const auto found = object.find(key);
    if (found != object.end() && found->is_string()) return found->get<std::string>();
  }
  return std::string(line);
}

}  // namespace banyan::client
