// A channel to a trunk, and its errors in words that say what to do next.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace banyan::client {

inline constexpr char kDefaultServer[] = "127.0.0.1:50051";
inline constexpr absl::Duration kConnectPatience = absl::Seconds(5);

// "host:port", "[v6]:port" or "unix:/path"; kInvalidArgument says what is wrong.
absl::Status CheckServerAddress(std::string_view address);

// A channel without waiting: for services that may start later.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// A channel that is connected. kUnavailable when nothing listens (at once) or no connection is made
// within `patience`; kInvalidArgument for a malformed address.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address,
                                                       absl::Duration patience);

// The outcome of a call to `address` as a sentence for a person: what happened, where, what to do.
// OK stays OK; the code is kept.
absl::Status ExplainCall(const absl::Status& status, std::string_view address);

}  // namespace banyan::client
