// absl::Status to grpc::Status and back; messages are capped at 1 KiB, codes are equal by design.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace banyan {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace banyan
