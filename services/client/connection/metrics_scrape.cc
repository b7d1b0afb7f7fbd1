#include "services/client/connection/metrics_scrape.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/time/clock.h"
#include "common/base/strings.h"

namespace banyan::client {
namespace {

constexpr size_t kMaxPageBytes = 16 << 20;

absl::Status Failed(const std::string& address, std::string_view why) {
  return StatusF(absl::StatusCode::kUnavailable, "no metrics at {}: {}", address, why);
}

// A connected socket with time limits on every read and write, or -1 with errno.
int ConnectTcp(const std::string& host, const std::string& port, absl::Duration patience) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) {
    errno = EADDRNOTAVAIL;
    return -1;
  }
  const timeval limit = absl::ToTimeval(patience);
  int fd = -1;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) continue;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));  // bounds connect as well
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) break;
    const int error = errno;
    close(fd);
    fd = -1;
    errno = error;
  }
  const int error = errno;
  freeaddrinfo(found);
  errno = error;
  return fd;
}

}  // namespace

absl::StatusOr<MetricsPage> ScrapeMetrics(const std::string& address, absl::Duration patience) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return Failed(address, "expected host:port");
  std::string host = address.substr(0, colon);
  if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
  const absl::Time deadline = absl::Now() + patience;
  const int fd = ConnectTcp(host, address.substr(colon + 1), patience);
  if (fd < 0) return Failed(address, strerror(errno));
  const std::string request =
      fmt::format("GET /metrics HTTP/1.0\r\nHost: {}\r\nAccept: text/plain\r\n\r\n", address);
  std::string page;
  bool complete = false;
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
      static_cast<ssize_t>(request.size())) {
    char buffer[16384];
    while (absl::Now() < deadline && page.size() < kMaxPageBytes) {
      const ssize_t count = recv(fd, buffer, sizeof(buffer), 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        complete = count == 0;
        break;
      }
      page.append(buffer, static_cast<size_t>(count));
    }
  }
  close(fd);
  if (!complete) return Failed(address, "the page did not arrive in time");
  const size_t body = page.find("\r\n\r\n");
  const size_t space = page.find(' ');
  if (body == std::string::npos || space == std::string::npos ||
      page.compare(space + 1, 3, "200") != 0) {
    return Failed(address,
                  fmt::format("it answered '{}'", Printable(page.substr(0, page.find('\r')), 60)));
  }
  return MetricsPage::Parse(std::string_view(page).substr(body + 4));
}

}  // namespace banyan::client
