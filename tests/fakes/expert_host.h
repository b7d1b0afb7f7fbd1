// A real expert host in this process for tests and benchmarks: a gRPC server on a real socket with
// the real Forward data plane, describing itself as told and computing with a given executor.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/metrics/registry.h"
#include "common/rpc/health_service.h"
#include "common/rpc/memory_inbox.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "services/expert/runtime/expert_executor.h"
#include "services/expert/server/forward_stream.h"
#include "services/expert/server/pool_lender.h"

namespace banyan {

class ExpertHost {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";
    // As a real host has them, beside the data plane.
    bool health_and_reflection = false;
    expert::ForwardStreamServer::Options forward;
    // What LendPool lends; nullptr: still loading.
    expert::PoolLender::OpenFileFn open_pool = nullptr;
  };

  // `executor` is borrowed; nullptr: still loading, until SetExecutor. Aborts when it cannot
  // listen.
  ExpertHost(const Options& options, expert::v1::DescribeResponse description,
             expert::ExpertExecutor* executor);
  ~ExpertHost();

  const std::string& address() const { return address_; }  // to connect to
  MetricsRegistry& metrics() { return metrics_; }
  void SetExecutor(expert::ExpertExecutor* executor) { forward_->SetExecutor(executor); }
  void Drain() { forward_->Drain(); }
  // Ends everything at once, as a process that exits.
  void Shutdown();

 private:
  class Service;
  std::string address_;
  MetricsRegistry metrics_;
  std::unique_ptr<MemoryInbox> inbox_;
  std::unique_ptr<Service> service_;
  HealthService health_{{}};
  std::optional<expert::ForwardStreamServer> forward_;
  std::unique_ptr<grpc::Server> server_;
};

// What a host with this geometry tells of itself; for cluster `shard_index` of `num_shards`.
expert::v1::DescribeResponse MakeDescription(const ShardGeometry& geometry, expert::v1::Split split,
                                             int32_t shard_index, int32_t num_shards,
                                             const std::string& fingerprint);

}  // namespace banyan
