#include "common/pool/shard.h"

#include <gtest/gtest.h>

#include <string>

#include "common/base/strings.h"

namespace banyan {
namespace {

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

ModelConfig Config(int32_t num_experts, int32_t width) {
  ModelConfig config;
  config.num_hidden_layers = 3;
  config.hidden_size = 128;
  config.num_experts = num_experts;
  config.num_experts_per_tok = 4;
  config.moe_intermediate_size = width;
  return config;
}

TEST(ParseShardTest, AcceptsEveryShard) {
  for (int n = 1; n <= 8; ++n) {
    for (int i = 0; i < n; ++i) {
      const auto shard = ParseShard(fmt::format("{}/{}", i, n), ShardSplit::kExperts);
      ASSERT_TRUE(shard.ok()) << shard.status();
      EXPECT_EQ(shard->index, i);
      EXPECT_EQ(shard->num_shards, n);
      EXPECT_EQ(shard->split, ShardSplit::kExperts);
    }
  }
}

TEST(ParseShardTest, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "shard '': expected I/N, such as 0/2"},
      {"1", "shard '1': expected I/N, such as 0/2"},
      {"1/", "shard '1/': expected I/N, such as 0/2"},
      {"/2", "shard '/2': expected I/N, such as 0/2"},
      {"a/2", "shard 'a/2': expected I/N, such as 0/2"},
      {"0/2x", "shard '0/2x': expected I/N, such as 0/2"},
      {"0/2/3", "shard '0/2/3': expected I/N, such as 0/2"},
      {"0/99999999999", "shard '0/99999999999': expected I/N, such as 0/2"},
      {"0/0", "shard '0/0': 0 shards, expected 1 to 8"},
      {"0/9", "shard '0/9': 9 shards, expected 1 to 8"},
      {"2/2", "shard '2/2': index 2, expected 0 to 1"},
      {"-1/2", "shard '-1/2': index -1, expected 0 to 1"},
  };
  for (const auto& [text, message] : cases) {
    const auto shard = ParseShard(text, ShardSplit::kWidth);
    ASSERT_FALSE(shard.ok()) << text;
    EXPECT_EQ(shard.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Message(shard.status()), message);
  }
}

// For every size and N: the slices cover everything once, in order, and differ by one at most.
TEST(MakeShardGeometryTest, SlicesCoverEverythingOnce) {
  for (const ShardSplit split : {ShardSplit::kWidth, ShardSplit::kExperts}) {
    for (int32_t size = 8; size <= 70; ++size) {
      for (int32_t n = 1; n <= 8; ++n) {
        int32_t next = 0;
        for (int32_t i = 0; i < n; ++i) {
          const auto g = MakeShardGeometry(Config(split == ShardSplit::kWidth ? 16 : size,
                                                  split == ShardSplit::kWidth ? size : 64),
                                           {i, n, split});
          ASSERT_TRUE(g.ok()) << g.status();
          const bool width = split == ShardSplit::kWidth;
          EXPECT_EQ(width ? g->first_width : g->first_expert, next);
          const int32_t part = width ? g->num_shard_width : g->num_shard_experts;
          EXPECT_GE(part, size / n);
          EXPECT_LE(part, size / n + 1);
          EXPECT_EQ(width ? g->num_shard_experts : g->num_shard_width, width ? 16 : 64);
          next += part;
        }
        EXPECT_EQ(next, size);
      }
    }
  }
}

TEST(MakeShardGeometryTest, SlicesAreWholeGroups) {
  for (const int32_t group : {32, 64}) {
    for (const int32_t size : {32, 64, 96, 100, 500, 512, 768}) {
      const int32_t num_groups = (size + group - 1) / group;
      for (int32_t n = 1; n <= 8; ++n) {
        int32_t next = 0;
        for (int32_t i = 0; i < n; ++i) {
          const auto g = MakeShardGeometry(Config(16, size), {i, n, ShardSplit::kWidth}, group);
          ASSERT_EQ(g.ok(), n <= num_groups) << g.status();
          if (!g.ok()) continue;
          EXPECT_EQ(g->first_width, next);
          EXPECT_EQ(g->first_width % group, 0);
          EXPECT_GT(g->num_shard_width, 0);
          next += g->num_shard_width;
        }
        if (n <= num_groups) {
          EXPECT_EQ(next, size);
        }
      }
    }
  }
  const auto refused = MakeShardGeometry(Config(16, 64), {0, 2, ShardSplit::kWidth}, 64);
  EXPECT_EQ(Message(refused.status()),
            "2 shards by width: the model has 64 columns per expert, 1 groups of 64; this pool "
            "format is cut between groups, so a shard would get nothing; use fewer shards or "
            "--split experts");
}

TEST(ShardTextTest, NamesTheShard) {
  EXPECT_EQ(ShardText({0, 2, ShardSplit::kWidth}), "width-0of2");
  EXPECT_EQ(ShardText({7, 8, ShardSplit::kExperts}), "experts-7of8");
}

TEST(MakeShardGeometryTest, RefusesMoreShardsThanThereIsToSplit) {
  const auto width = MakeShardGeometry(Config(16, 5), {0, 6, ShardSplit::kWidth});
  EXPECT_EQ(Message(width.status()),
            "6 shards by width: the model has 5 columns per expert, too few for so many");
  const auto experts = MakeShardGeometry(Config(3, 64), {0, 4, ShardSplit::kExperts});
  EXPECT_EQ(Message(experts.status()),
            "4 shards by experts: the model has 3 experts, too few for so many");
}

TEST(MakeShardGeometryTest, RowsFitAMessage) {
  ModelConfig config = Config(16, 64);
  EXPECT_EQ(MakeShardGeometry(config, {})->max_rows, kMaxRows);
  config.hidden_size = 16384;
  const int32_t rows = MakeShardGeometry(config, {})->max_rows;
  EXPECT_LT(rows, kMaxRows);
  EXPECT_LT(int64_t{rows} * (16384 * 4 + 4 * 6), 64 << 20);
}

}  // namespace
}  // namespace banyan
