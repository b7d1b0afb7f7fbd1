#include "services/expert/expert_options.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/strings.h"

namespace banyan::expert {
namespace {

absl::StatusOr<std::optional<ExpertOptions>> Parse(std::vector<const char*> args) {
  args.insert(args.begin(), "banyan-expert");
  return ParseExpertOptions(static_cast<int>(args.size()), args.data());
}

TEST(ExpertOptionsTest, Defaults) {
  const auto parsed = Parse({"--model", "/m"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const ExpertOptions& options = **parsed;
  EXPECT_EQ(options.model_dir, "/m");
  EXPECT_EQ(options.listen, "127.0.0.1:50061");
  EXPECT_EQ(options.metrics_listen, "127.0.0.1:9111");
  EXPECT_EQ(options.shard.num_shards, 1);
  EXPECT_EQ(options.num_threads, 0);
  EXPECT_EQ(options.pool_format, "auto");
  EXPECT_EQ(options.pool_memory.mode, PoolMemoryMode::kMap);
}

TEST(ExpertOptionsTest, EveryFlag) {
  const auto parsed =
      Parse({"--model=/m", "--listen=unix:/tmp/e.sock", "--metrics_listen=", "--shard=1/3",
             "--split=experts", "--pool_format=int8", "--pool_dir=/p", "--verify_pool",
             "--pool_memory=shm", "--mlock", "--host_budget=1KiB", "--threads=4",
             "--cpu_tier=scalar", "--insecure_listen", "--log_level=info"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const ExpertOptions& options = **parsed;
  EXPECT_EQ(options.listen, "unix:/tmp/e.sock");
  EXPECT_EQ(options.metrics_listen, "");
  EXPECT_EQ(options.shard.index, 1);
  EXPECT_EQ(options.shard.num_shards, 3);
  EXPECT_EQ(options.shard.split, ShardSplit::kExperts);
  EXPECT_EQ(options.pool_format, "int8");
  EXPECT_EQ(options.pool_dir, "/p");
  EXPECT_TRUE(options.verify_pool);
  EXPECT_EQ(options.pool_memory.mode, PoolMemoryMode::kShm);
  EXPECT_TRUE(options.pool_memory.lock);
  EXPECT_EQ(options.pool_memory.budget_bytes, 1024u);
  EXPECT_EQ(options.num_threads, 4);
  EXPECT_EQ(options.cpu_tier, "scalar");
  EXPECT_TRUE(options.insecure_listen);
}

TEST(ExpertOptionsTest, EmptyMetricsAddressBothWays) {
  EXPECT_EQ((*Parse({"--model=/m", "--metrics_listen="}))->metrics_listen, "");
  EXPECT_EQ((*Parse({"--model=/m", "--metrics_listen", ""}))->metrics_listen, "");
  EXPECT_EQ((*Parse({"--metrics_listen=", "--model=/m"}))->model_dir, "/m");
}

TEST(ExpertOptionsTest, SaysWhatIsWrong) {
  struct Case {
    std::vector<const char*> args;
    std::string part;
  };
  const Case cases[] = {
      {{}, "--model is required"},
      {{"--model=/m", "--nonsense=1"}, "--nonsense=1"},
      {{"--model=/m", "--shard=4/4"}, "--shard: shard '4/4': index 4, expected 0 to 3"},
      {{"--model=/m", "--split=rows"}, "--split: 'rows': expected width or experts"},
      {{"--model=/m", "--pool_format=x"},
       "--pool_format 'x': expected auto, bf16, int8, nf4 or int4"},
      {{"--model=/m", "--pool_memory=disk"},
       "--pool_memory: 'disk': expected map, shm or anonymous"},
      {{"--model=/m", "--host_budget=much"}, "--host_budget: "},
      {{"--model=/m", "--cpu_tier=mmx"},
       "--cpu_tier 'mmx': expected auto, scalar, avx2, avx512, avx512_vnni or amx"},
      {{"--model=/m", "--threads=-1"}, "--threads -1: expected 0 to 1024"},
      {{"--model=/m", "--threads=two"}, "--threads"},
      {{"--model=/m", "--listen=nohost"}, "--listen: address \"nohost\""},
      {{"--model=/m", "--listen=0.0.0.0:1"}, "--insecure_listen"},
      {{"--model=/m", "--log_level=loud"}, "--log_level: log level 'loud'"},
      {{"--model=/m", "--log_format=xml"}, "--log_format: log format 'xml'"},
  };
  for (const Case& c : cases) {
    const auto parsed = Parse(c.args);
    ASSERT_FALSE(parsed.ok()) << c.part;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(ToStd(parsed.status().message())).find(c.part), std::string::npos)
        << parsed.status();
  }
}

TEST(ExpertOptionsTest, HelpAndVersion) {
  for (const char* flag : {"--help", "--version"}) {
    const auto parsed = Parse({flag});
    ASSERT_TRUE(parsed.ok());
    EXPECT_FALSE(parsed->has_value());
  }
}

}  // namespace
}  // namespace banyan::expert
