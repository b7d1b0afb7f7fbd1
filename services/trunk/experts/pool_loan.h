// Borrows the file with the pool from a host on this machine (docs/formats/expert_call.md).
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/file_descriptor.h"

namespace banyan::trunk {

// The file that the host at `address` serves from, opened for reading; over a connection of its
// own, within `timeout`. kFailedPrecondition: `address` is not "unix:/path"; else the host's error,
// or that of the connection, with the address before it. Any thread.
absl::StatusOr<FileDescriptor> BorrowPoolFrom(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    absl::Duration timeout);

}  // namespace banyan::trunk
