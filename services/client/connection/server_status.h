// What a trunk says of itself over its RPCs: health, load, model, shards.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/common/v1/load.pb.h"
#include "proto/inference/v1/inference.grpc.pb.h"

namespace banyan::client {

struct ReplicaStatus {
  std::string address;
  std::string state;  // as the trunk sees it
  // Asked from here; absent when it cannot be reached from here.
  std::optional<common::v1::LoadProgress> progress;
};

struct ServerStatus {
  bool serving = false;
  common::v1::LoadProgress progress;                        // of the trunk
  std::optional<inference::v1::GetModelInfoResponse> info;  // absent while it loads
  std::vector<std::vector<ReplicaStatus>> shards;           // of `info`, in its order
};

// Whether a trunk or an expert host serves: they answer health checks alike. Errors are the
// server's (ExplainCall); `address` is for their text.
absl::StatusOr<bool> ReadServing(const std::shared_ptr<grpc::Channel>& channel,
                                 const std::string& address, absl::Time deadline);

// Errors as above.
absl::StatusOr<ServerStatus> ReadServerStatus(const std::shared_ptr<grpc::Channel>& channel,
                                              const std::string& address, absl::Time deadline);

}  // namespace banyan::client
