// gRPC tuned for the expert call, both ends; every value and its measurement: docs/performance.md.
#pragma once

#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace banyan {

// First statement of main(), before any gRPC call: sets GRPC_EXPERIMENTS and switches abseil's
// mutex deadlock detector off.
void PrepareGrpcProcess();

// Whole-message reads, large frames and windows, own connection per channel, quick reconnect,
// keepalive that finds a hung host within 100 ms.
grpc::ChannelArguments ExpertChannelArguments();
void ApplyExpertServerSettings(grpc::ServerBuilder& builder);

inline constexpr int kMaxMessageBytes = 64 << 20;

// "host:port", "[v6]:port" or "unix:/path". kInvalidArgument says what is wrong. A listener outside
// loopback without TLS needs `insecure_listen`.
absl::Status CheckListenAddress(std::string_view address, bool insecure_listen);

}  // namespace banyan
