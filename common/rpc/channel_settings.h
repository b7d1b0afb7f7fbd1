// gRPC tuned for the expert call, both ends; every value and its measurement: docs/performance.md.
#pragma once

#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include <string_view>

#include "absl/status/status.h"

namespace banyan {

// First statement of main(), before any gRPC call: sets gRPC's environment (GRPC_EXPERIMENTS,
// GRPC_POLL_STRATEGY) and switches abseil's mutex deadlock detector off.
void PrepareGrpcProcess();

// Whole-message reads, large frames, message limit, a connection of its own for every channel,
// quick reconnect; keepalive for hosts that vanish while nothing is under way.
grpc::ChannelArguments ExpertChannelArguments();
void ApplyExpertServerSettings(grpc::ServerBuilder& builder);

inline constexpr int kMaxMessageBytes = 64 << 20;

// "host:port", "[v6]:port" or "unix:/path". kInvalidArgument says what is wrong. A listener outside
// loopback without TLS needs `insecure_listen`.
absl::Status CheckListenAddress(std::string_view address, bool insecure_listen);

}  // namespace banyan
