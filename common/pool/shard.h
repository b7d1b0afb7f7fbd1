// Which part of the expert pool a host serves.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"

namespace banyan {

enum class ShardSplit : uint8_t {
  kWidth,    // a slice of the width of every expert
  kExperts,  // whole experts
};

std::string_view ShardSplitName(ShardSplit split);  // "width", "experts"

// --split. kInvalidArgument says what was expected.
absl::StatusOr<ShardSplit> ParseShardSplit(std::string_view text);

inline constexpr int32_t kMaxShards = 8;
inline constexpr int32_t kMaxRows = 4096;  // of one call, where a message holds that many
// Of a call of many rows: what down gives of all pairs before it is summed, a slice at a time that
// the outer cache holds (services/expert/runtime/down_by_expert.cc).
inline constexpr uint64_t kMaxProductBytes = uint64_t{48} << 20;

// Shard `index` of `num_shards`, 0 <= index < num_shards <= kMaxShards.
struct ShardSpec {
  int32_t index = 0;
  int32_t num_shards = 1;
  ShardSplit split = ShardSplit::kWidth;
};

// "I/N" as in --shard 0/2. kInvalidArgument says what was expected.
absl::StatusOr<ShardSpec> ParseShard(std::string_view text, ShardSplit split);

// Sizes and place of what this host serves, as Describe tells it.
struct ShardGeometry {
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t num_experts = 0;  // of the model
  int32_t moe_intermediate_size = 0;
  int32_t max_top_k = 0;
  int32_t first_expert = 0;
  int32_t num_shard_experts = 0;
  int32_t first_width = 0;
  int32_t num_shard_width = 0;
  int32_t max_rows = 0;
};

// Shard i of N gets [floor(i * size / N), floor((i + 1) * size / N)) of the experts, or of the
// groups of `width_group` columns of the width (PoolFormatGroup; the last one may be shorter):
// slices differ by one expert or group at most and cover everything exactly once. kInvalidArgument
// when a shard, this or another, would get nothing.
absl::StatusOr<ShardGeometry> MakeShardGeometry(const ModelConfig& config, const ShardSpec& shard,
                                                int64_t width_group = 1);

// Rows of one call that every shard of the model takes.
int32_t MaxRowsOf(const ModelConfig& config);

// As it stands in file names: "width-0of2".
std::string ShardText(const ShardSpec& shard);

}  // namespace banyan
