#include "common/rpc/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "common/base/file_descriptor.h"
#include "common/base/strings.h"

namespace banyan {

std::optional<std::string> UnixSocketPath(const std::string& address) {
  constexpr std::string_view kUnix = "unix:";
  if (address.compare(0, kUnix.size(), kUnix) != 0) return std::nullopt;
  std::string path = address.substr(kUnix.size());
  if (path.compare(0, 2, "//") == 0) path.erase(0, 2);
  return path;
}

std::optional<sockaddr_un> UnixSocketAddress(const std::string& path) {
  sockaddr_un out{};
  out.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(out.sun_path)) return std::nullopt;
  std::memcpy(out.sun_path, path.data(), path.size());
  return out;
}

namespace {

FileDescriptor NewSocket(int family) {
  return FileDescriptor(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

absl::Status CannotListen(const std::string& address, const std::string& why) {
  return StatusF(absl::StatusCode::kUnavailable, "cannot listen on {}: {}", Printable(address),
                 why);
}

std::string BindUnix(const sockaddr_un& where) {
  const FileDescriptor probe = NewSocket(AF_UNIX);
  if (bind(probe.get(), reinterpret_cast<const sockaddr*>(&where), sizeof(where)) != 0) {
    return std::strerror(errno);
  }
  unlink(where.sun_path);
  return "gRPC refused it";
}

std::string BindTcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return "expected host:port";
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &list);
  if (error != 0) return gai_strerror(error);
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
  for (const addrinfo* info = list; info != nullptr; info = info->ai_next) {
    const FileDescriptor probe = NewSocket(info->ai_family);
    const int on = 1;
    setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(probe.get(), info->ai_addr, info->ai_addrlen) != 0 || listen(probe.get(), 1) != 0) {
      return std::strerror(errno);
    }
  }
  return "gRPC refused it";
}

}  // namespace

absl::Status CheckUnixSocketFree(const std::string& address) {
  const std::optional<std::string> path = UnixSocketPath(address);
  if (!path.has_value()) return absl::OkStatus();
  struct stat found;
  if (lstat(path->c_str(), &found) != 0) return absl::OkStatus();
  if (!S_ISSOCK(found.st_mode)) {
    return FailedPreconditionF("cannot listen on {}: the path exists and is no socket",
                               Printable(address));
  }
  const std::optional<sockaddr_un> where = UnixSocketAddress(*path);
  if (!where.has_value()) return absl::OkStatus();
  const FileDescriptor probe = NewSocket(AF_UNIX);
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&*where), sizeof(*where)) == 0) {
    return CannotListen(address, "another process listens there");
  }
  return absl::OkStatus();
}

absl::Status ExplainListenFailure(const std::string& address) {
  const std::optional<std::string> path = UnixSocketPath(address);
  if (!path.has_value()) return CannotListen(address, BindTcp(address));
  const std::optional<sockaddr_un> where = UnixSocketAddress(*path);
  return CannotListen(address, where.has_value() ? BindUnix(*where) : "the path is too long");
}

void RemoveUnixSocket(const std::string& address) {
  const std::optional<std::string> path = UnixSocketPath(address);
  struct stat found;
  if (path.has_value() && lstat(path->c_str(), &found) == 0 && S_ISSOCK(found.st_mode)) {
    unlink(path->c_str());
  }
}

}  // namespace banyan
