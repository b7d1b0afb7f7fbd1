// RPC adapter of the Experts service: Describe, WatchLoad and Drain, synchronous
// (common/rpc/server_threads.h). Forward is raw and served by ForwardStreamServer.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "common/rpc/load_watchers.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "services/expert/runtime/pool_description.h"

namespace banyan::expert {

// Thread-safe.
class ExpertService final : public v1::Experts::WithRawMethod_Forward<v1::Experts::Service> {
 public:
  // `watchers` is borrowed; `drain` is called by every Drain RPC.
  ExpertService(LoadWatchers* watchers, std::function<void()> drain);

  // Describe answers from now on; before it is UNAVAILABLE.
  void SetPool(const PoolDescription& pool, const std::string& kernel_tier);

  grpc::Status Describe(grpc::ServerContext* context, const v1::DescribeRequest* request,
                        v1::DescribeResponse* response) override;
  grpc::Status WatchLoad(grpc::ServerContext* context, const v1::WatchLoadRequest* request,
                         grpc::ServerWriter<common::v1::LoadProgress>* writer) override;
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override;

 private:
  LoadWatchers* const watchers_;
  const std::function<void()> drain_;
  v1::DescribeResponse description_;  // complete once described_ is set
  std::atomic<bool> described_{false};
};

}  // namespace banyan::expert
