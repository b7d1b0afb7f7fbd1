// Copies of open files from process to process: SCM_RIGHTS in messages of Unix sockets.
#pragma once

#include <sys/un.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/file_descriptor.h"

namespace banyan {

// One message of `content`, which is not empty, with a copy of `file`: to `address`, or where
// `socket` is connected to if that is nullptr. Never waits. An errno, 0 when it was sent.
int SendMessageWithFile(int socket, const sockaddr_un* address, std::span<const uint8_t> content,
                        int file);

struct MessageWithFile {
  size_t bytes = 0;     // of its content; those beyond the room for it are lost
  FileDescriptor file;  // none where the message has none, or several: those are closed
};
// The next message; never waits. An errno, 0 when there was one.
int ReceiveMessageWithFile(int socket, std::span<uint8_t> content, MessageWithFile* message);

// Two ends of a connection for SendFile and ReceiveFile; one is for another process.
struct FileChannel {
  FileDescriptor near;
  FileDescriptor far;
};
// The system's error.
absl::StatusOr<FileChannel> MakeFileChannel();

// Sends a copy of `file` through `socket`, which another process made and which may be anything;
// never waits. kFailedPrecondition: no connected Unix socket, or its other end is closed;
// kUnavailable: it is full.
absl::Status SendFile(int socket, int file);

// What SendFile sent, waiting for it until `deadline` at most. kDeadlineExceeded: nothing came;
// kUnavailable: the other end was closed; kDataLoss: a message that is not one file.
absl::StatusOr<FileDescriptor> ReceiveFile(int socket, absl::Time deadline);

}  // namespace banyan
