// --cluster_config: {"shards": [{"replicas": ["unix:/run/e0.sock", "10.0.0.7:50061"]}, ...]}.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan {

struct ClusterConfig {
  struct Shard {
    std::vector<std::string> replicas;  // gRPC addresses, at least one
  };
  std::vector<Shard> shards;  // shard i of N in list order, at least one
};

// Whether every replica is one of this machine, reached through a Unix socket.
bool AllOnUnixSockets(const ClusterConfig& cluster);

// Unknown keys, empty lists, malformed or repeated addresses are refused by name and place.
absl::StatusOr<ClusterConfig> ParseClusterConfig(std::string_view json, std::string_view source);
absl::StatusOr<ClusterConfig> LoadClusterConfig(const std::string& path);

}  // namespace banyan
