#include "common/rpc/channel_settings.h"

#include <grpc/grpc.h>
#include <sys/un.h>

#include <charconv>
#include <cstdlib>
#include <string>

#include "absl/synchronization/mutex.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

struct IntArgument {
  const char* name;
  int value;
};

// The one group of arguments that matters: a message is read in one piece. Else every second one of
// 4 KiB comes in two reads, and gRPC answers the first with a window update in a packet of its own.
constexpr IntArgument kBothEnds[] = {
    {"grpc.experimental.tcp_min_read_chunk_size", 256 << 10},
    {"grpc.experimental.tcp_read_chunk_size", 256 << 10},
    {"grpc.experimental.tcp_max_read_chunk_size", 4 << 20},
    {GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1},
    {GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 8 << 20},
    {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, kMaxMessageBytes},
    {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, kMaxMessageBytes},
    {GRPC_ARG_ENABLE_CHANNELZ, 0},
    {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
};

// The thread that computes is the one that answers pings, so these must be longer than any call. A
// hung replica under a call is found by the trunk's own clock, much sooner.
constexpr IntArgument kClient[] = {
    {GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1},         {GRPC_ARG_ENABLE_RETRIES, 0},
    {GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1}, {GRPC_ARG_ENABLE_HTTP_PROXY, 0},
    {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50},     {GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50},
    {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000},       {GRPC_ARG_KEEPALIVE_TIME_MS, 10'000},
    {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 30'000},         {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
};

constexpr IntArgument kServer[] = {
    {GRPC_ARG_KEEPALIVE_TIME_MS, 30'000},
    {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 30'000},
    {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 50},
    {GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0},
    {GRPC_ARG_ALLOW_REUSEPORT, 0},  // a port in use is an error, not a second server
};

constexpr std::string_view kExperiment = "-tcp_read_chunks";

bool IsLoopback(std::string_view host) {
  return host == "localhost" || host == "::1" || host.substr(0, 4) == "127.";
}

absl::Status CheckPort(std::string_view address, std::string_view port) {
  int value = -1;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), value);
  if (port.empty() || error != std::errc() || end != port.data() + port.size() || value < 0 ||
      value > 65535) {
    return InvalidArgumentF("address \"{}\": port \"{}\", expected a number from 0 to 65535",
                            Printable(address), Printable(port));
  }
  return absl::OkStatus();
}

}  // namespace

void PrepareGrpcProcess() {
  // Experiments the user asked for stay; ours comes last and wins.
  const char* given = std::getenv("GRPC_EXPERIMENTS");
  std::string experiments = given == nullptr ? "" : given;
  if (experiments.find(kExperiment) == std::string::npos) {
    if (!experiments.empty()) experiments.push_back(',');
    setenv("GRPC_EXPERIMENTS", experiments.append(kExperiment).c_str(), 1);
  }
  // Errors reach us as statuses; gRPC's own lines would stand between ours. The user may ask.
  setenv("GRPC_VERBOSITY", "NONE", 0);
  // With epoll all queues of a process share one set, and whichever thread sleeps in it is woken
  // for every packet. With poll each queue watches its own connections
  // (docs/adr/one-poller-per-queue.md).
  setenv("GRPC_POLL_STRATEGY", "poll", 0);
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

grpc::ChannelArguments ExpertChannelArguments() {
  grpc::ChannelArguments arguments;
  for (const IntArgument& argument : kBothEnds) arguments.SetInt(argument.name, argument.value);
  for (const IntArgument& argument : kClient) arguments.SetInt(argument.name, argument.value);
  return arguments;
}

void ApplyExpertServerSettings(grpc::ServerBuilder& builder) {
  for (const IntArgument& argument : kBothEnds) {
    builder.AddChannelArgument(argument.name, argument.value);
  }
  for (const IntArgument& argument : kServer) {
    builder.AddChannelArgument(argument.name, argument.value);
  }
}

absl::Status CheckListenAddress(std::string_view address, bool insecure_listen) {
  constexpr std::string_view kUnix = "unix:";
  if (address.substr(0, kUnix.size()) == kUnix) {
    const std::string_view path = address.substr(kUnix.size());
    if (path.empty()) {
      return InvalidArgumentF("address \"{}\": expected a path after unix:", Printable(address));
    }
    constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;
    if (path.size() > kMaxPath) {
      return InvalidArgumentF("address \"{}\": path of {} bytes, expected at most {}",
                              Printable(address), path.size(), kMaxPath);
    }
    return absl::OkStatus();
  }
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return InvalidArgumentF("address \"{}\": expected host:port, [v6]:port or unix:/path",
                            Printable(address));
  }
  std::string_view host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[]/") != std::string_view::npos) {
    return InvalidArgumentF("address \"{}\": expected host:port, [v6]:port or unix:/path",
                            Printable(address));
  }
  RETURN_IF_ERROR(CheckPort(address, address.substr(colon + 1)));
  if (!insecure_listen && !IsLoopback(host)) {
    return InvalidArgumentF(
        "address \"{}\" is reachable from other machines and has no TLS: give --tls_cert and "
        "--tls_key, or --insecure_listen where the network is trusted",
        Printable(address));
  }
  return absl::OkStatus();
}

}  // namespace banyan
