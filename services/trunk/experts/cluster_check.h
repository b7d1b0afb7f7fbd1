// Does a host serve what its place in the cluster needs, and do the shards together make the model?
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/expert/v1/expert.pb.h"

namespace banyan::trunk {

// What the trunk read from its own checkpoint, and the largest call it makes.
struct ExpectedModel {
  std::string fingerprint;  // hex; of config.json and every shard header
  int32_t num_layers = 0;
  std::vector<int32_t> moe_layers;  // layers that have routed experts, ascending
  int32_t num_experts = 0;
  int32_t hidden_size = 0;
  int32_t moe_intermediate_size = 0;
  int32_t num_experts_per_tok = 0;
  int32_t max_rows = 0;  // of one call
};

// A host against the model and its place `shard` of `num_shards` in the cluster configuration.
// kFailedPrecondition says what differs.
absl::Status CheckReplica(const expert::v1::DescribeResponse& host, const ExpectedModel& model,
                          int32_t shard, int32_t num_shards);

// Two replicas of one shard serve the same slice in the same format.
absl::Status CheckSameShard(const expert::v1::DescribeResponse& first,
                            const std::string& first_address,
                            const expert::v1::DescribeResponse& second);

struct ShardHost {
  std::string address;
  expert::v1::DescribeResponse description;
};

// `shards` in order, each passed CheckReplica. Every expert and every column of its width is served
// exactly once, by one split and one pool format. kFailedPrecondition names hosts and the gap or
// overlap.
absl::Status CheckCoverage(std::span<const ShardHost> shards);

}  // namespace banyan::trunk
