// What gRPC does not say about an address it cannot listen on, and Unix socket files that outlive
// their process.
#pragma once

#include <sys/un.h>

#include <optional>
#include <string>

#include "absl/status/status.h"

namespace banyan {

// The path of "unix:/path" and "unix:///path"; none for other addresses.
std::optional<std::string> UnixSocketPath(const std::string& address);

// None for a path that is empty or too long for a socket.
std::optional<sockaddr_un> UnixSocketAddress(const std::string& path);

// Before AddListeningPort: kUnavailable when a live process listens on a Unix socket (gRPC would
// take the file from it), kFailedPrecondition when its path is something else than a socket. A file
// that a crashed process left is no obstacle. OK for TCP.
absl::Status CheckUnixSocketFree(const std::string& address);

// After BuildAndStart failed or bound no port: tries to bind and says what the system answers,
// kUnavailable: `cannot listen on 127.0.0.1:50061: Address already in use`.
absl::Status ExplainListenFailure(const std::string& address);

// After the server has gone; OK for TCP and when the file is gone.
void RemoveUnixSocket(const std::string& address);

}  // namespace banyan
