#include "services/client/connection/server_status.h"

#include <grpcpp/client_context.h>

#include <utility>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/grpc_status.h"
#include "proto/health/v1/health.grpc.pb.h"
#include "services/client/connection/load_watcher.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {
namespace {

using inference::v1::GetModelInfoResponse;

constexpr absl::Duration kExpertPatience = absl::Milliseconds(500);

ReplicaStatus ReadReplica(const std::string& address, const std::string& state) {
  ReplicaStatus replica{address, state, {}};
  const auto channel = Connect(address, kExpertPatience);
  if (!channel.ok()) return replica;
  auto progress = ReadLoad(*channel, ServiceKind::kExpert, absl::Now() + kExpertPatience);
  if (progress.ok()) replica.progress = *std::move(progress);
  return replica;
}

}  // namespace

absl::StatusOr<bool> ReadServing(const std::shared_ptr<grpc::Channel>& channel,
                                 const std::string& address, absl::Time deadline) {
  auto stub = grpc::health::v1::Health::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  grpc::health::v1::HealthCheckResponse response;
  const absl::Status called =
      FromGrpc(stub->Check(&context, grpc::health::v1::HealthCheckRequest(), &response));
  if (!called.ok()) return ExplainCall(called, address);
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

absl::StatusOr<ServerStatus> ReadServerStatus(const std::shared_ptr<grpc::Channel>& channel,
                                              const std::string& address, absl::Time deadline) {
  ServerStatus status;
  ASSIGN_OR_RETURN(status.serving, ReadServing(channel, address, deadline));
  auto progress = ReadLoad(channel, ServiceKind::kTrunk, deadline);
  if (!progress.ok()) return ExplainCall(progress.status(), address);
  status.progress = *std::move(progress);
  auto stub = inference::v1::Inference::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  GetModelInfoResponse info;
  const absl::Status called =
      FromGrpc(stub->GetModelInfo(&context, inference::v1::GetModelInfoRequest(), &info));
  if (called.ok()) {
    for (const auto& shard : info.shards()) {
      auto& replicas = status.shards.emplace_back();
      for (int i = 0; i < shard.replicas_size(); ++i) {
        replicas.push_back(
            ReadReplica(shard.replicas(i), i < shard.states_size() ? shard.states(i) : ""));
      }
    }
    status.info = std::move(info);
  } else if (called.code() != absl::StatusCode::kUnavailable) {
    return ExplainCall(called, address);
  }
  return status;
}

}  // namespace banyan::client
