// Knows every replica of every shard: connects, checks what it serves, keeps a stream to it open,
// and tells which are usable.
#pragma once

#include <grpcpp/security/credentials.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/file_descriptor.h"
#include "common/config/cluster_config.h"
#include "common/metrics/registry.h"
#include "services/trunk/experts/cluster_check.h"
#include "services/trunk/experts/expert_links.h"
#include "services/trunk/routing/dispatch_plan.h"

namespace banyan::trunk {

// Its own thread does all connecting, away from the calls. A replica is asked to Describe itself on
// the connection its stream will use; one that does not fit is refused by name and asked again
// every second, in case it was restarted with other files. When every shard has been described
// their coverage is checked; only then streams are opened. Unreachable replicas are tried again
// after 50 ms, doubling to half a second. Thread-safe.
class ExpertDirectory {
 public:
  struct Options {
    ClusterConfig cluster;
    ExpectedModel model;
    std::shared_ptr<grpc::ChannelCredentials> credentials;  // nullptr: no TLS
    absl::Duration connect_timeout = absl::Seconds(2);      // to connect and to describe; to open
    // How long a waiting call polls before it sleeps in the kernel: above the time of most calls.
    absl::Duration spin = absl::Milliseconds(2);
    // Calls to hosts at unix: addresses go through shared memory where that can be had.
    bool shared_memory = true;
  };

  struct ReplicaInfo {
    std::string address;
    bool ready = false;
    std::string state;  // "ready", "connecting: why", "refused: why"
  };
  struct ShardInfo {
    int32_t index = 0;
    std::vector<ReplicaInfo> replicas;
    // Of the first replica that was accepted; empty and 0 until then.
    std::string split;
    std::string pool_format;
    std::string kernel_tier;
    uint64_t pool_bytes = 0;
  };

  // kInvalidArgument for an empty cluster. `metrics` is borrowed. Starts the thread.
  static absl::StatusOr<std::unique_ptr<ExpertDirectory>> Create(Options options,
                                                                 MetricsRegistry* metrics);
  ~ExpertDirectory();
  ExpertDirectory(const ExpertDirectory&) = delete;
  ExpertDirectory& operator=(const ExpertDirectory&) = delete;

  int32_t num_shards() const;
  int32_t hidden_size() const;
  int32_t num_experts() const;

  // OK when every shard has a usable replica. kFailedPrecondition: hosts answer and do not fit the
  // model or each other; kUnavailable: hosts are missing. The message names them.
  absl::Status Ready() const;
  // Returns when Ready, or at the deadline with what Ready says then.
  absl::Status WaitReady(absl::Time deadline) const;

  std::vector<ShardInfo> Shards() const;

  // For the transport: one thread at a time, each with the turn of links().
  ExpertLinks& links();
  // Replica numbers of a shard: consecutive, in the order of the configuration.
  int32_t first_replica(int32_t shard) const;
  int32_t num_replicas(int32_t shard) const;
  const std::string& address(int32_t replica) const;
  // Ranges of experts in shard order, fixed once the cluster was Ready.
  std::vector<ExpertRange> ExpertRanges() const;
  // The file with the pool of a shard, lent by a host on this machine and opened for reading
  // (LentPool maps it): of the ready replicas at unix: addresses, in order, the first that lends
  // it, each asked for connect_timeout at most. kFailedPrecondition: no replica at a unix: address,
  // or no shared_memory; kUnavailable: none of those is ready; else the error of the last one.
  // Waits for the hosts: not for the thread of the calls.
  absl::StatusOr<FileDescriptor> BorrowPool(int32_t shard) const;
  // "shard 1 of 2: unix:/run/e1.sock (connecting: Socket closed), ..."
  std::string ShardState(int32_t shard) const;

 private:
  class Impl;
  explicit ExpertDirectory(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::trunk
