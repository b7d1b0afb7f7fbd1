#include "services/client/connection/server_connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "common/rpc/channel_settings.h"

namespace banyan::client {
namespace {

bool IsPort(std::string_view text) {
  if (text.empty() || text.size() > 5) return false;
  int value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return false;
    value = value * 10 + (c - '0');
  }
  return value >= 1 && value <= 65535;
}

absl::Status NothingListens(std::string_view address) {
  return StatusF(absl::StatusCode::kUnavailable,
                 "nothing listens on {}: start it with ./run.sh demo or banyan serve", address);
}

}  // namespace

absl::Status CheckServerAddress(std::string_view address) {
  constexpr std::string_view kUnix = "unix:";
  if (address.substr(0, kUnix.size()) == kUnix) {
    const size_t length = address.size() - kUnix.size();
    if (length == 0) return InvalidArgumentF("server address '{}': no path after unix:", address);
    if (length > 107) {
      return InvalidArgumentF("server address '{}': path of {} bytes, at most 107 fit a socket",
                              Printable(address), length);
    }
    return absl::OkStatus();
  }
  const size_t colon = address.rfind(':');
  const bool v6 = address.find(':') != colon;
  const bool bracketed = !address.empty() && address.front() == '[' &&
                         colon != std::string_view::npos && colon > 0 && address[colon - 1] == ']';
  if (colon == std::string_view::npos || colon == 0 || !IsPort(address.substr(colon + 1)) ||
      (v6 && !bracketed)) {
    return InvalidArgumentF("server address '{}': expected host:port, [v6]:port or unix:/path",
                            Printable(address));
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt("grpc.initial_reconnect_backoff_ms", 100);
  arguments.SetInt("grpc.min_reconnect_backoff_ms", 100);
  arguments.SetInt("grpc.max_reconnect_backoff_ms", 1000);
  arguments.SetInt("grpc.enable_http_proxy", 0);  // a service of ours, never behind http_proxy
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address,
                                                       absl::Duration patience) {
  if (absl::Status status = CheckServerAddress(address); !status.ok()) return status;
  std::shared_ptr<grpc::Channel> channel = MakeChannel(address);
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(patience);
  for (;;) {
    const grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return channel;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) {
      return NothingListens(address);
    }
    if (!channel->WaitForStateChange(state, deadline)) {
      return StatusF(absl::StatusCode::kUnavailable,
                     "no connection to {} within {}: is the address right and the host up?",
                     address, absl::FormatDuration(patience));
    }
  }
}

absl::Status ExplainCall(const absl::Status& status, std::string_view address) {
  const std::string_view said = ToStd(status.message());
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return status;
    case absl::StatusCode::kUnavailable:
      if (said.find("failed to connect") != std::string_view::npos) return NothingListens(address);
      return StatusF(status.code(),
                     "{} cannot answer now: {} (banyan status shows which part is missing)",
                     address, said);
    case absl::StatusCode::kDeadlineExceeded:
      return StatusF(status.code(), "{} did not answer in time: {} (--timeout gives it longer)",
                     address, said);
    case absl::StatusCode::kUnimplemented:
      return StatusF(status.code(),
                     "{} is no trunk that speaks banyan.inference.v1: {} (an expert's address?)",
                     address, said);
    case absl::StatusCode::kResourceExhausted:
      return StatusF(status.code(), "{} is overloaded: {}", address, said);
    default:
      return StatusF(status.code(), "{}",
                     said.empty() ? "the call failed without a message" : said);
  }
}

}  // namespace banyan::client
