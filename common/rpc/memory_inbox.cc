#include "common/rpc/memory_inbox.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/listen_address.h"

namespace banyan {
namespace {

// Datagrams looked at for one that is asked for: nobody can keep us here.
constexpr int kMostDatagrams = 256;

absl::Status SystemError(const std::string& path) { return absl::ErrnoToStatus(errno, path); }

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  const std::optional<sockaddr_un> address = UnixSocketAddress(path);
  if (address.has_value()) return *address;
  return InvalidArgumentF("{}: a socket's path has 1 to {} bytes", path,
                          sizeof(sockaddr_un::sun_path) - 1);
}

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

}  // namespace

std::optional<std::string> MemoryInboxPath(const std::string& address) {
  std::optional<std::string> path = UnixSocketPath(address);
  if (path.has_value()) *path += ".memory";
  return path;
}

absl::Status SendMemory(const std::string& inbox, const MemoryName& name, int fd) {
  ASSIGN_OR_RETURN(sockaddr_un address, AddressOf(inbox));
  const FileDescriptor from(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!from.valid()) return SystemError(inbox);
  iovec content = {const_cast<uint8_t*>(name.data()), name.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_name = &address;
  message.msg_namelen = sizeof(address);
  message.msg_iov = &content;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(part), &fd, sizeof(fd));
  if (sendmsg(from.get(), &message, MSG_NOSIGNAL) < 0) return SystemError(inbox);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<MemoryInbox>> MemoryInbox::Create(const std::string& path) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  FileDescriptor made(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.valid()) return SystemError(path);
  RemoveUnixSocket("unix:" + path);
  if (bind(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return SystemError(path);
  }
  return std::unique_ptr<MemoryInbox>(new MemoryInbox(path, std::move(made)));
}

MemoryInbox::MemoryInbox(std::string path, FileDescriptor socket)
    : path_(std::move(path)), socket_(std::move(socket)) {}
MemoryInbox::~MemoryInbox() { RemoveUnixSocket("unix:" + path_); }

void MemoryInbox::Receive() {
  for (int i = 0; i < kMostDatagrams; ++i) {
    uint8_t content[sizeof(MemoryName) + 1];  // one more: a longer one is told from a right one
    iovec to = {content, sizeof(content)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr message = {};
    message.msg_iov = &to;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t bytes = recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
    if (bytes < 0) return;
    FileDescriptor file = OnlyFile(message);
    if (!file.valid() || bytes != static_cast<ssize_t>(sizeof(MemoryName))) continue;
    Received& received = received_.emplace_back();
    std::memcpy(received.name.data(), content, received.name.size());
    received.file = std::move(file);
    if (received_.size() > kMostKept) received_.pop_front();
  }
}

FileDescriptor MemoryInbox::Take(const MemoryName& name) {
  Receive();
  const auto found = std::find_if(received_.begin(), received_.end(),
                                  [&name](const Received& r) { return r.name == name; });
  if (found == received_.end()) return {};
  FileDescriptor file = std::move(found->file);
  received_.erase(found);
  return file;
}

}  // namespace banyan
