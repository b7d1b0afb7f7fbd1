#include "common/rpc/memory_inbox.h"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/file_passing.h"
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

}  // namespace

absl::StatusOr<MemoryName> RandomMemoryName() {
  MemoryName name;
  if (getrandom(name.data(), name.size(), 0) != static_cast<ssize_t>(name.size())) {
    return SystemError("getrandom");
  }
  return name;
}

std::optional<std::string> MemoryInboxPath(const std::string& address) {
  std::optional<std::string> path = UnixSocketPath(address);
  if (path.has_value()) *path += ".memory";
  return path;
}

absl::Status SendMemory(const std::string& inbox, const MemoryName& name, int fd) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(inbox));
  const FileDescriptor from(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!from.valid()) return SystemError(inbox);
  const int error = SendMessageWithFile(from.get(), &address, name, fd);
  return error == 0 ? absl::OkStatus() : absl::ErrnoToStatus(error, inbox);
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
  absl::MutexLock lock(&mutex_);
  ReceiveLocked();
}

void MemoryInbox::ReceiveLocked() {
  for (int i = 0; i < kMostDatagrams; ++i) {
    uint8_t content[sizeof(MemoryName) + 1];  // one more: a longer one is told from a right one
    MessageWithFile message;
    if (ReceiveMessageWithFile(socket_.get(), content, &message) != 0) return;
    if (!message.file.valid() || message.bytes != sizeof(MemoryName)) continue;
    Received& received = received_.emplace_back();
    std::memcpy(received.name.data(), content, received.name.size());
    received.file = std::move(message.file);
    if (received_.size() > kMostKept) received_.pop_front();
  }
}

FileDescriptor MemoryInbox::Take(const MemoryName& name) {
  absl::MutexLock lock(&mutex_);
  ReceiveLocked();
  const auto found = std::find_if(received_.begin(), received_.end(),
                                  [&name](const Received& r) { return r.name == name; });
  if (found == received_.end()) return {};
  FileDescriptor file = std::move(found->file);
  received_.erase(found);
  return file;
}

}  // namespace banyan
