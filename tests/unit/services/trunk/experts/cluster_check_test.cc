#include "services/trunk/experts/cluster_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/fakes/expert_host.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::trunk {
namespace {

using expert::v1::DescribeResponse;
using testing::HasSubstr;
using namespace testing_experts;  // NOLINT: names of the small model

DescribeResponse Host(bool by_experts, int32_t index, int32_t count) {
  return MakeDescription(Geometry(by_experts, index, count),
                         by_experts ? expert::v1::EXPERTS : expert::v1::WIDTH, index, count,
                         kFingerprint);
}

std::vector<ShardHost> Cluster(bool by_experts, int32_t count) {
  std::vector<ShardHost> hosts;
  for (int32_t i = 0; i < count; ++i) {
    hosts.push_back({"host" + std::to_string(i) + ":1", Host(by_experts, i, count)});
  }
  return hosts;
}

TEST(CheckReplicaTest, AcceptsWhatFits) {
  for (bool by_experts : {false, true}) {
    for (int32_t i = 0; i < 5; ++i) {
      EXPECT_EQ(CheckReplica(Host(by_experts, i, 5), Model(), i, 5), absl::OkStatus());
    }
  }
}

TEST(CheckReplicaTest, SaysWhatDiffers) {
  const auto error = [](const std::function<void(DescribeResponse&)>& change) {
    DescribeResponse host = Host(true, 1, 4);
    change(host);
    const absl::Status status = CheckReplica(host, Model(), 1, 4);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_EQ(error([](auto& host) { host.set_protocol_version(2); }),
            "speaks protocol version 2, this trunk 1");
  EXPECT_EQ(error([](auto& host) { host.set_model_fingerprint("0ff"); }),
            "serves model fingerprint 0ff, this trunk's model is 5ca1ab1e");
  EXPECT_EQ(error([](auto& host) { host.set_shard_index(2); }),
            "serves shard 2/4, the cluster configuration has it as 1/4");
  EXPECT_EQ(error([](auto& host) { host.set_num_shards(8); }),
            "serves shard 1/8, the cluster configuration has it as 1/4");
  EXPECT_EQ(error([](auto& host) { host.set_num_layers(3); }), "num_layers 3, expected 2");
  EXPECT_THAT(error([](auto& host) { host.add_moe_layers(7); }),
              HasSubstr("has routed experts in 3 layers"));
  EXPECT_EQ(error([](auto& host) { host.set_num_experts(17); }), "num_experts 17, expected 16");
  EXPECT_EQ(error([](auto& host) { host.set_hidden_size(13); }), "hidden_size 13, expected 12");
  EXPECT_EQ(error([](auto& host) { host.set_moe_intermediate_size(1); }),
            "moe_intermediate_size 1, expected 24");
  EXPECT_EQ(error([](auto& host) { host.clear_split(); }),
            "split unspecified, expected width or experts");
  EXPECT_EQ(error([](auto& host) { host.set_num_shard_experts(13); }),
            "experts from 4 to 17 (exclusive), expected a part of 0 to 16");
  EXPECT_EQ(error([](auto& host) { host.set_num_shard_experts(0xffffffff); }),
            "experts from 4 to 4294967299 (exclusive), expected a part of 0 to 16");
  EXPECT_THAT(error([](auto& host) { host.set_num_shard_width(0); }), HasSubstr("width from 0"));
  EXPECT_EQ(error([](auto& host) { host.set_max_top_k(2); }),
            "takes at most 2 experts a row, the model needs 3");
  EXPECT_EQ(error([](auto& host) { host.set_max_rows(39); }),
            "takes at most 39 rows a call, this trunk sends up to 40 (--max_batch_tokens)");
  EXPECT_THAT(error([](auto& host) { host.set_max_message_bytes(1000); }),
              HasSubstr("takes messages of at most 1000 bytes, 40 rows need 2768"));
}

TEST(CheckReplicaTest, ReplicasOfAShardServeTheSameSlice) {
  const DescribeResponse first = Host(true, 0, 2);
  DescribeResponse second = first;
  EXPECT_TRUE(CheckSameShard(first, "a:1", second).ok());
  second.set_num_shard_experts(7);
  EXPECT_EQ(CheckSameShard(first, "a:1", second).message(),
            "serves 7 experts from 0, width 24 from 0, bf16, split by experts; replica a:1 of the "
            "same shard serves 8 experts from 0, width 24 from 0, bf16, split by experts");
  second = first;
  second.set_pool_format("int8");
  EXPECT_FALSE(CheckSameShard(first, "a:1", second).ok());
}

TEST(CheckCoverageTest, AcceptsWholeClusters) {
  for (bool by_experts : {false, true}) {
    for (int32_t count = 1; count <= 8; ++count) {
      EXPECT_EQ(CheckCoverage(Cluster(by_experts, count)), absl::OkStatus()) << count;
    }
  }
}

TEST(CheckCoverageTest, NamesHostsAndTheGapOrOverlap) {
  std::vector<ShardHost> hosts = Cluster(true, 4);
  hosts[2].description.set_first_expert(9);
  hosts[2].description.set_num_shard_experts(3);
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "experts 8 to 9 (exclusive) are served by nobody; shard 2 of 4 (host2:1) starts at 9");
  hosts[2].description.set_first_expert(6);
  hosts[2].description.set_num_shard_experts(6);
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "experts 6 to 8 (exclusive) are served twice: by shard 1 of 4 (host1:1) and by shard 2 "
            "of 4 (host2:1)");
  hosts = Cluster(true, 4);
  hosts[3].description.set_num_shard_experts(2);
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "experts 14 to 16 (exclusive) are served by nobody; shard 3 of 4 (host3:1) ends at 14");
  hosts = Cluster(false, 3);
  hosts[0].description.set_first_width(1);
  hosts[0].description.set_num_shard_width(7);
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "columns of the expert width 0 to 1 (exclusive) are served by nobody; shard 0 of 3 "
            "(host0:1) starts at 1");
  hosts = Cluster(false, 2);
  hosts[1].description.set_num_shard_experts(15);
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "shard 1 of 2 (host1:1) is split by width but serves 15 of 16 experts");
  hosts = Cluster(true, 2);
  hosts[1].description.set_split(expert::v1::WIDTH);
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "shard 0 of 2 (host0:1) is split by experts, shard 1 of 2 (host1:1) by width");
  hosts = Cluster(true, 2);
  hosts[1].description.set_pool_format("int8");
  EXPECT_EQ(CheckCoverage(hosts).message(),
            "shard 0 of 2 (host0:1) has pool format bf16, shard 1 of 2 (host1:1) has int8");
}

}  // namespace
}  // namespace banyan::trunk
