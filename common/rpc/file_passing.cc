#include "common/rpc/file_passing.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

// A message has to have some content.
constexpr uint8_t kContent = 'F';

// The one descriptor of a message; none where there are fewer or more.
FileDescriptor OnlyFile(msghdr& message) {
  FileDescriptor only;
  int count = 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t bytes = part->cmsg_len - CMSG_LEN(0);
    for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int), ++count) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + at, sizeof(fd));
      only = FileDescriptor(fd);
    }
  }
  return count == 1 ? std::move(only) : FileDescriptor();
}

// Others would take the message and drop the file (TCP), or are no sockets at all.
bool IsUnixSocket(int fd) {
  struct stat info;
  int domain = 0;
  socklen_t size = sizeof(domain);
  return ::fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) &&
         ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
}

// Until `socket` has something to read, or its other end is gone; false at the deadline.
bool AwaitReadable(int socket, absl::Time deadline) {
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    constexpr absl::Duration kLongest = absl::Minutes(1);
    // Rounded up: the last look is after the deadline.
    const auto wait_ms =
        absl::ToInt64Milliseconds(absl::Ceil(std::min(left, kLongest), absl::Milliseconds(1)));
    pollfd waiting = {socket, POLLIN, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(wait_ms));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
    if (left == absl::ZeroDuration()) return false;
  }
}

}  // namespace

int SendMessageWithFile(int socket, const sockaddr_un* address, std::span<const uint8_t> content,
                        int file) {
  iovec part = {const_cast<uint8_t*>(content.data()), content.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  if (address != nullptr) {
    message.msg_name = const_cast<sockaddr_un*>(address);
    message.msg_namelen = sizeof(*address);
  }
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(head), &file, sizeof(file));
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? errno : 0;
}

int ReceiveMessageWithFile(int socket, std::span<uint8_t> content, MessageWithFile* message) {
  iovec to = {content.data(), content.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr header = {};
  header.msg_iov = &to;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t bytes = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (bytes < 0) return errno;
  message->bytes = static_cast<size_t>(bytes);
  message->file = OnlyFile(header);
  return 0;
}

absl::StatusOr<FileChannel> MakeFileChannel() {
  int ends[2];
  // Of packets: a message is received as it was sent.
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return absl::ErrnoToStatus(errno, "socketpair");
  }
  return FileChannel{FileDescriptor(ends[0]), FileDescriptor(ends[1])};
}

absl::Status SendFile(int socket, int file) {
  if (!IsUnixSocket(socket)) {
    return FailedPreconditionF("cannot send a file: what it was to go through is no Unix socket");
  }
  const int error = SendMessageWithFile(socket, nullptr, {&kContent, 1}, file);
  if (error == 0) return absl::OkStatus();
  return StatusF(error == EAGAIN || error == ENOBUFS ? absl::StatusCode::kUnavailable
                                                     : absl::StatusCode::kFailedPrecondition,
                 "cannot send a file through the Unix socket: {}", std::strerror(error));
}

absl::StatusOr<FileDescriptor> ReceiveFile(int socket, absl::Time deadline) {
  uint8_t content[2];
  MessageWithFile message;
  int error = EAGAIN;
  while (error == EAGAIN || error == EINTR) {
    if (!AwaitReadable(socket, deadline)) {
      return absl::DeadlineExceededError("no file came through the Unix socket in time");
    }
    error = ReceiveMessageWithFile(socket, content, &message);
  }
  if (error != 0) return absl::ErrnoToStatus(error, "cannot receive a file");
  if (message.bytes == 0) {
    return absl::UnavailableError("the Unix socket was closed before a file came through it");
  }
  if (message.bytes != 1 || content[0] != kContent || !message.file.valid()) {
    return DataLossF("a message of {} bytes {} file, expected one byte and a file", message.bytes,
                     message.file.valid() ? "with a" : "without exactly one");
  }
  return std::move(message.file);
}

}  // namespace banyan
