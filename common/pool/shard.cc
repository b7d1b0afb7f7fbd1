#include "common/pool/shard.h"

#include <algorithm>
#include <charconv>

#include "common/base/check.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

// Bytes of one Forward message that payloads may fill: the limit of 64 MiB (channel_settings.h)
// less room for the fields around them.
constexpr int64_t kMaxPayloadBytes = (64 << 20) - (64 << 10);

struct Slice {
  int32_t first;
  int32_t size;
};

Slice SliceOf(int32_t size, const ShardSpec& shard) {
  const auto bound = [&](int64_t i) { return static_cast<int32_t>(i * size / shard.num_shards); };
  return {bound(shard.index), bound(shard.index + 1) - bound(shard.index)};
}

bool ParseInt(std::string_view text, int32_t* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string_view ShardSplitName(ShardSplit split) {
  return split == ShardSplit::kWidth ? "width" : "experts";
}

absl::StatusOr<ShardSplit> ParseShardSplit(std::string_view text) {
  if (text == "width") return ShardSplit::kWidth;
  if (text == "experts") return ShardSplit::kExperts;
  return InvalidArgumentF("'{}': expected width or experts", Printable(text));
}

std::string ShardText(const ShardSpec& shard) {
  return fmt::format("{}-{}of{}", ShardSplitName(shard.split), shard.index, shard.num_shards);
}

absl::StatusOr<ShardSpec> ParseShard(std::string_view text, ShardSplit split) {
  ShardSpec shard;
  shard.split = split;
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos || !ParseInt(text.substr(0, slash), &shard.index) ||
      !ParseInt(text.substr(slash + 1), &shard.num_shards)) {
    return InvalidArgumentF("shard '{}': expected I/N, such as 0/2", Printable(text));
  }
  if (shard.num_shards < 1 || shard.num_shards > kMaxShards) {
    return InvalidArgumentF("shard '{}': {} shards, expected 1 to {}", Printable(text),
                            shard.num_shards, kMaxShards);
  }
  if (shard.index < 0 || shard.index >= shard.num_shards) {
    return InvalidArgumentF("shard '{}': index {}, expected 0 to {}", Printable(text), shard.index,
                            shard.num_shards - 1);
  }
  return shard;
}

absl::StatusOr<ShardGeometry> MakeShardGeometry(const ModelConfig& config, const ShardSpec& shard,
                                                int64_t width_group) {
  CHECK(width_group >= 1);
  ShardGeometry out;
  out.num_layers = config.num_hidden_layers;
  out.hidden_size = config.hidden_size;
  out.num_experts = config.num_experts;
  out.moe_intermediate_size = config.moe_intermediate_size;
  out.max_top_k = config.num_experts_per_tok;
  out.num_shard_experts = config.num_experts;
  out.num_shard_width = config.moe_intermediate_size;
  if (shard.split == ShardSplit::kWidth) {
    const int64_t width = config.moe_intermediate_size;
    const auto num_groups = static_cast<int32_t>((width + width_group - 1) / width_group);
    if (num_groups < shard.num_shards) {
      return width_group == 1
                 ? InvalidArgumentF(
                       "{} shards by width: the model has {} columns per expert, too few for so "
                       "many",
                       shard.num_shards, width)
                 : InvalidArgumentF(
                       "{} shards by width: the model has {} columns per expert, {} groups of {}; "
                       "this pool format is cut between groups, so a shard would get nothing; use "
                       "fewer shards or --split experts",
                       shard.num_shards, width, num_groups, width_group);
    }
    const Slice slice = SliceOf(num_groups, shard);
    const int64_t end = std::min(width, (slice.first + slice.size) * width_group);
    out.first_width = static_cast<int32_t>(slice.first * width_group);
    out.num_shard_width = static_cast<int32_t>(end - out.first_width);
  } else {
    if (config.num_experts < shard.num_shards) {
      return InvalidArgumentF("{} shards by experts: the model has {} experts, too few for so many",
                              shard.num_shards, config.num_experts);
    }
    const Slice slice = SliceOf(config.num_experts, shard);
    out.first_expert = slice.first;
    out.num_shard_experts = slice.size;
  }
  out.max_rows = MaxRowsOf(config);
  return out;
}

int32_t MaxRowsOf(const ModelConfig& config) {
  const int64_t row_bytes =
      int64_t{config.hidden_size} * 4 + int64_t{config.num_experts_per_tok} * 6;
  return static_cast<int32_t>(std::clamp<int64_t>(kMaxPayloadBytes / row_bytes, 1, kMaxRows));
}

}  // namespace banyan
