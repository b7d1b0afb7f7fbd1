// How a caller hands memory to the process that serves a Unix socket, where gRPC cannot carry
// files: in a datagram to a second socket, beside that one. So it reaches whoever shares the
// directory, containers among them, and whoever may connect to the one may send to the other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/file_descriptor.h"

namespace banyan {

// What a file is sent under and asked for by: random, known to sender and recipient alone.
using MemoryName = std::array<uint8_t, 16>;

// A new one, from the system's random numbers; its error.
absl::StatusOr<MemoryName> RandomMemoryName();

// Where the inbox of a server at "unix:/path" is; none for other addresses.
std::optional<std::string> MemoryInboxPath(const std::string& address);

// Sends a copy of the descriptor; never waits. The system's error: no inbox there, not allowed, or
// nobody has emptied it for long.
absl::Status SendMemory(const std::string& inbox, const MemoryName& name, int fd);

// Thread-safe.
class MemoryInbox {
 public:
  // Replaces the socket of a process that is gone. The system's error, or kInvalidArgument: the
  // path is too long for a socket.
  static absl::StatusOr<std::unique_ptr<MemoryInbox>> Create(const std::string& path);
  ~MemoryInbox();
  MemoryInbox(const MemoryInbox&) = delete;
  MemoryInbox& operator=(const MemoryInbox&) = delete;

  // Takes in what was sent, so that senders find room.
  void Receive() ABSL_LOCKS_EXCLUDED(mutex_);

  // The file that was sent under `name`; none if none was, or more than kMostKept have come after
  // it. Does not wait. It may be a file of any kind.
  FileDescriptor Take(const MemoryName& name) ABSL_LOCKS_EXCLUDED(mutex_);

  static constexpr size_t kMostKept = 32;

 private:
  struct Received {
    MemoryName name;
    FileDescriptor file;
  };

  MemoryInbox(std::string path, FileDescriptor socket);
  void ReceiveLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string path_;
  const FileDescriptor socket_;
  absl::Mutex mutex_;
  std::deque<Received> received_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan
