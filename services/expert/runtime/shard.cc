#include "services/expert/runtime/shard.h"

#include <algorithm>
#include <charconv>

#include "common/base/strings.h"

namespace banyan::expert {
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

absl::StatusOr<ShardGeometry> MakeShardGeometry(const ModelConfig& config, const ShardSpec& shard) {
  ShardGeometry out;
  out.num_layers = config.num_hidden_layers;
  out.hidden_size = config.hidden_size;
  out.num_experts = config.num_experts;
  out.moe_intermediate_size = config.moe_intermediate_size;
  out.max_top_k = config.num_experts_per_tok;
  out.num_shard_experts = config.num_experts;
  out.num_shard_width = config.moe_intermediate_size;
  if (shard.split == ShardSplit::kWidth) {
    const Slice slice = SliceOf(config.moe_intermediate_size, shard);
    out.first_width = slice.first;
    out.num_shard_width = slice.size;
  } else {
    const Slice slice = SliceOf(config.num_experts, shard);
    out.first_expert = slice.first;
    out.num_shard_experts = slice.size;
  }
  if (out.num_shard_width == 0 || out.num_shard_experts == 0) {
    const bool width = shard.split == ShardSplit::kWidth;
    return InvalidArgumentF("{} shards by {}: the model has {} {}, too few for so many",
                            shard.num_shards, width ? "width" : "experts",
                            width ? config.moe_intermediate_size : config.num_experts,
                            width ? "columns per expert" : "experts");
  }
  const int64_t row_bytes = int64_t{config.hidden_size} * 4 + int64_t{out.max_top_k} * 6;
  out.max_rows =
      static_cast<int32_t>(std::clamp<int64_t>(kMaxPayloadBytes / row_bytes, 1, kMaxRows));
  return out;
}

}  // namespace banyan::expert
