#include "common/config/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

TEST(ClusterConfigTest, OneAddressOfTheNetworkIsEnoughNotToBeOnUnixSockets) {
  EXPECT_TRUE(AllOnUnixSockets({{{{"unix:/a", "unix:///b"}}, {{"unix:/c"}}}}));
  EXPECT_FALSE(AllOnUnixSockets({{{{"unix:/a", "127.0.0.1:1"}}, {{"unix:/c"}}}}));
  EXPECT_FALSE(AllOnUnixSockets({{{{"unix:/a"}}, {{"dns:///c:1"}}}}));
}

TEST(ClusterConfig, ShardsAndReplicasKeepTheirOrder) {
  const std::string text =
      R"({"shards": [{"replicas": ["unix:/run/e0.sock", "10.0.0.7:50061"]},
                     {"replicas": ["[::1]:50062", "dns:///experts.banyan:50061",
                                   "unix:///run/e1.sock", "unix:relative.sock", "host_1:1"]}]})";
  const auto config = ParseClusterConfig(text, "c.json");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->shards.size(), 2u);
  EXPECT_EQ(config->shards[0].replicas,
            (std::vector<std::string>{"unix:/run/e0.sock", "10.0.0.7:50061"}));
  EXPECT_EQ(config->shards[1].replicas.size(), 5u);

  const test::TempDir temp;
  test::WriteFile(temp.File("c.json"), text);
  EXPECT_EQ(LoadClusterConfig(temp.File("c.json"))->shards.size(), 2u);
  EXPECT_EQ(LoadClusterConfig(temp.File("d.json")).status().code(), absl::StatusCode::kNotFound);
}

TEST(ClusterConfig, ErrorsNameThePlace) {
  const struct {
    std::string text;
    std::string message;
  } cases[] = {
      {"{}", "c.json: key 'shards' is missing"},
      {R"({"shards": []})", "c.json: shards is [], expected a list with at least one entry"},
      {R"({"shards": {}})", "c.json: shards is {}, expected a list with at least one entry"},
      {R"({"shards": null})", "c.json: shards is null, expected a list with at least one entry"},
      {R"({"shard": []})", "c.json: unknown key 'shard', expected 'shards'"},
      {R"({"shards": [1]})", "c.json: shards[0]: is 1, expected an object"},
      {R"({"shards": [{"replicas": ["a:1"]}, {}]})",
       "c.json: shards[1]: key 'replicas' is missing"},
      {R"({"shards": [{"replicas": ["a:1"], "weight": 2}]})",
       "c.json: shards[0]: unknown key 'weight', expected 'replicas'"},
      {R"({"shards": [{"replicas": []}]})",
       "c.json: shards[0]: replicas is [], expected a list with at least one entry"},
      {R"({"shards": [{"replicas": ["a:1", 7]}]})",
       "c.json: shards[0].replicas[1] is 7, expected an address"},
      {R"({"shards": [{"replicas": ["a:1"]}, {"replicas": ["b:1", "a:1"]}]})",
       "c.json: shards[1].replicas[1]: address 'a:1' is also shards[0].replicas[0]"},
      {R"({"shards": [{"replicas": ["unix:"]}]})",
       "c.json: shards[0].replicas[0]: address 'unix:': unix: needs a path"},
      {R"({"shards": [{"replicas": ["unix://run/x"]}]})",
       "c.json: shards[0].replicas[0]: address 'unix://run/x': unix:// needs an absolute path"},
  };
  for (const auto& bad : cases) {
    const auto config = ParseClusterConfig(bad.text, "c.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << bad.text;
    EXPECT_EQ(config.status().message(), bad.message);
  }
  for (const char* address :
       {"", "a", ":1", "a:", "a:0", "a:65536", "a:99999999999", "a:1x", "a b:1", "http://a:1",
        "[::1]", "[]:1", "[x]:1", "a:-1", "dns:///", "::1:5"}) {
    const auto config = ParseClusterConfig(
        fmt::format(R"({{"shards": [{{"replicas": ["{}"]}}]}})", address), "c.json");
    EXPECT_EQ(config.status().message(),
              fmt::format("c.json: shards[0].replicas[0]: address '{}': expected HOST:PORT, "
                          "[IPV6]:PORT, dns:///HOST:PORT or unix:PATH",
                          address));
  }
  const auto long_path = ParseClusterConfig(
      fmt::format(R"({{"shards": [{{"replicas": ["unix:/{}"]}}]}})", std::string(107, 'p')), "c");
  EXPECT_THAT(long_path.status().message(), ::testing::HasSubstr("longer than 107 bytes"));
}

}  // namespace
}  // namespace banyan
