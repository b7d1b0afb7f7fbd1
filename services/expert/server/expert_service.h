// RPC adapter of the Experts service: Describe, WatchLoad, LendPool and Drain, synchronous
// (common/rpc/server_threads.h). Forward is raw and served by ForwardStreamServer.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/rpc/load_watchers.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "services/expert/runtime/pool_description.h"

namespace banyan::expert {

// Thread-safe.
class ExpertService final : public v1::Experts::WithRawMethod_Forward<v1::Experts::Service> {
 public:
  // As PoolLender::Lend.
  using LendFn = std::function<absl::StatusOr<uint64_t>(std::string_view socket_name)>;

  // `watchers` is borrowed; `lend` is called by every LendPool RPC, `drain` by every Drain RPC.
  ExpertService(LoadWatchers* watchers, LendFn lend, std::function<void()> drain);

  // Describe answers from now on; before it is UNAVAILABLE.
  void SetPool(const PoolDescription& pool, const std::string& kernel_tier);

  grpc::Status Describe(grpc::ServerContext* context, const v1::DescribeRequest* request,
                        v1::DescribeResponse* response) override;
  grpc::Status WatchLoad(grpc::ServerContext* context, const v1::WatchLoadRequest* request,
                         grpc::ServerWriter<common::v1::LoadProgress>* writer) override;
  grpc::Status LendPool(grpc::ServerContext* context, const v1::LendPoolRequest* request,
                        v1::LendPoolResponse* response) override;
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override;

 private:
  LoadWatchers* const watchers_;
  const LendFn lend_;
  const std::function<void()> drain_;
  v1::DescribeResponse description_;  // complete once described_ is set
  std::atomic<bool> described_{false};
};

}  // namespace banyan::expert
