#include "tests/benchmark/expert/raw_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace banyan {
namespace {

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::exit(1);
}

bool IsUnix(const std::string& address) { return address.compare(0, 5, "unix:") == 0; }

sockaddr_un UnixAddress(const std::string& address) {
  sockaddr_un un{};
  un.sun_family = AF_UNIX;
  std::strncpy(un.sun_path, address.c_str() + 5, sizeof(un.sun_path) - 1);
  return un;
}

sockaddr_in LoopbackAddress(int port) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  in.sin_port = htons(static_cast<uint16_t>(port));
  return in;
}

void Tune(int fd, bool is_unix) {
  int one = 1;
  if (!is_unix) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

// False at the end of the connection.
template <typename Operation>
bool Spin(size_t size, Operation operation) {
  for (size_t done = 0; done < size;) {
    const ssize_t n = operation(done, size - done);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
      return false;
    } else {
      sched_yield();
    }
  }
  return true;
}

bool ReadAll(int fd, std::string& to) {
  return Spin(to.size(), [&](size_t at, size_t n) { return read(fd, to.data() + at, n); });
}
bool WriteAll(int fd, const std::string& from) {
  return Spin(from.size(),
              [&](size_t at, size_t n) { return send(fd, from.data() + at, n, MSG_NOSIGNAL); });
}

}  // namespace

void ServeRaw(const std::string& listen_on) {
  const bool is_unix = IsUnix(listen_on);
  const int listener = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
  if (is_unix) {
    const sockaddr_un un = UnixAddress(listen_on);
    if (bind(listener, reinterpret_cast<const sockaddr*>(&un), sizeof(un)) != 0) Die("bind");
  } else {
    const sockaddr_in in = LoopbackAddress(0);
    if (bind(listener, reinterpret_cast<const sockaddr*>(&in), sizeof(in)) != 0) Die("bind");
  }
  if (listen(listener, 4) != 0) Die("listen");
  std::string address = listen_on;
  if (!is_unix) {
    sockaddr_in in{};
    socklen_t size = sizeof(in);
    getsockname(listener, reinterpret_cast<sockaddr*>(&in), &size);
    address = "127.0.0.1:" + std::to_string(ntohs(in.sin_port));
  }
  std::printf("listening %s\n", address.c_str());
  std::fflush(stdout);
  while (true) {
    const int fd = accept(listener, nullptr, nullptr);
    if (fd < 0) Die("accept");
    Tune(fd, is_unix);
    std::string sizes(16, '\0');
    if (ReadAll(fd, sizes)) {
      uint64_t bytes[2];
      std::memcpy(bytes, sizes.data(), sizeof(bytes));
      std::string request(bytes[0], '\0');
      std::string reply(bytes[1], '\0');
      while (ReadAll(fd, request)) {
        // Every byte of the reply is written, from the request's where it has them.
        for (size_t at = 0; at < reply.size();) {
          const size_t part = std::min(reply.size() - at, request.size());
          std::memcpy(reply.data() + at, request.data(), part);
          at += part;
        }
        if (!WriteAll(fd, reply)) break;
      }
    }
    close(fd);
  }
}

RawClient::RawClient(const std::string& address, size_t request_bytes, size_t reply_bytes)
    : request_(request_bytes, 'x'), reply_(reply_bytes, '\0') {
  const bool is_unix = IsUnix(address);
  fd_ = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
  if (is_unix) {
    const sockaddr_un un = UnixAddress(address);
    if (connect(fd_, reinterpret_cast<const sockaddr*>(&un), sizeof(un)) != 0) Die("connect");
  } else {
    const sockaddr_in in = LoopbackAddress(std::atoi(address.c_str() + address.rfind(':') + 1));
    if (connect(fd_, reinterpret_cast<const sockaddr*>(&in), sizeof(in)) != 0) Die("connect");
  }
  Tune(fd_, is_unix);
  const uint64_t bytes[2] = {request_bytes, reply_bytes};
  WriteAll(fd_, std::string(reinterpret_cast<const char*>(bytes), sizeof(bytes)));
}

RawClient::~RawClient() { close(fd_); }

void RawClient::Call() {
  if (!WriteAll(fd_, request_) || !ReadAll(fd_, reply_)) Die("raw call");
}

}  // namespace banyan
