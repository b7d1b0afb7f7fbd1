#include "common/rpc/grpc_status.h"

#include <string>

#include "absl/strings/string_view.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr size_t kMaxMessageBytes = 1024;
constexpr std::string_view kCut = "...";

// At most 1 KiB, never cut inside a UTF-8 character: gRPC percent-encodes the message into a header
// that peers limit to 8 KiB.
std::string Capped(std::string_view message) {
  if (message.size() <= kMaxMessageBytes) return std::string(message);
  size_t size = kMaxMessageBytes - kCut.size();
  while (size > 0 && (static_cast<unsigned char>(message[size]) & 0xc0) == 0x80) --size;
  return std::string(message.substr(0, size)).append(kCut);
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      Capped(ToStd(status.message())));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = static_cast<int>(status.error_code());
  // A peer may send any number; what is no code of gRPC is kUnknown.
  const bool known = code > 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      Capped(status.error_message()));
}

}  // namespace banyan
