#include "services/trunk/experts/cluster_check.h"

#include <algorithm>
#include <string_view>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/channel_settings.h"
#include "common/rpc/expert_frame.h"

namespace banyan::trunk {
namespace {

using expert::v1::DescribeResponse;

absl::Status CheckEqual(std::string_view what, uint64_t found, int64_t expected) {
  if (expected >= 0 && found == static_cast<uint64_t>(expected)) return absl::OkStatus();
  return FailedPreconditionF("{} {}, expected {}", what, found, expected);
}

// [first, first + count) inside [0, total), not empty.
absl::Status CheckRange(std::string_view what, uint32_t first, uint32_t count, int32_t total) {
  const uint64_t end = uint64_t{first} + count;
  if (count > 0 && end <= static_cast<uint64_t>(total)) return absl::OkStatus();
  return FailedPreconditionF("{} from {} to {} (exclusive), expected a part of 0 to {}", what,
                             first, end, total);
}

std::string_view SplitName(expert::v1::Split split) {
  switch (split) {
    case expert::v1::WIDTH:
      return "width";
    case expert::v1::EXPERTS:
      return "experts";
    default:
      return "unspecified";
  }
}

struct Interval {
  uint32_t first;
  uint32_t end;
  const ShardHost* host;
};

std::string Named(const ShardHost& host) {
  return fmt::format("shard {} of {} ({})", host.description.shard_index(),
                     host.description.num_shards(), Printable(host.address));
}

// Intervals meet end to end from 0 to `total`.
absl::Status CheckLine(std::string_view what, std::vector<Interval> intervals, uint32_t total) {
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.first < b.first; });
  uint32_t covered = 0;
  const ShardHost* last = nullptr;
  for (const Interval& interval : intervals) {
    if (interval.first > covered) {
      return FailedPreconditionF("{} {} to {} (exclusive) are served by nobody; {} starts at {}",
                                 what, covered, interval.first, Named(*interval.host),
                                 interval.first);
    }
    if (interval.first < covered) {
      return FailedPreconditionF("{} {} to {} (exclusive) are served twice: by {} and by {}", what,
                                 interval.first, std::min(covered, interval.end), Named(*last),
                                 Named(*interval.host));
    }
    covered = interval.end;
    last = interval.host;
  }
  if (covered < total) {
    return FailedPreconditionF("{} {} to {} (exclusive) are served by nobody; {} ends at {}", what,
                               covered, total, Named(*last), covered);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckReplica(const DescribeResponse& host, const ExpectedModel& model, int32_t shard,
                          int32_t num_shards) {
  if (host.protocol_version() != kForwardProtocolVersion) {
    return FailedPreconditionF("speaks protocol version {}, this trunk {}", host.protocol_version(),
                               kForwardProtocolVersion);
  }
  if (host.model_fingerprint() != model.fingerprint) {
    return FailedPreconditionF("serves model fingerprint {}, this trunk's model is {}",
                               Printable(host.model_fingerprint()), model.fingerprint);
  }
  if (host.shard_index() != static_cast<uint32_t>(shard) ||
      host.num_shards() != static_cast<uint32_t>(num_shards)) {
    return FailedPreconditionF("serves shard {}/{}, the cluster configuration has it as {}/{}",
                               host.shard_index(), host.num_shards(), shard, num_shards);
  }
  RETURN_IF_ERROR(CheckEqual("num_layers", host.num_layers(), model.num_layers));
  if (!std::equal(host.moe_layers().begin(), host.moe_layers().end(), model.moe_layers.begin(),
                  model.moe_layers.end(), [](uint32_t a, int32_t b) { return int64_t{a} == b; })) {
    return FailedPreconditionF(
        "has routed experts in {} layers, other ones than the {} of the "
        "model",
        host.moe_layers_size(), model.moe_layers.size());
  }
  RETURN_IF_ERROR(CheckEqual("num_experts", host.num_experts(), model.num_experts));
  RETURN_IF_ERROR(CheckEqual("hidden_size", host.hidden_size(), model.hidden_size));
  RETURN_IF_ERROR(CheckEqual("moe_intermediate_size", host.moe_intermediate_size(),
                             model.moe_intermediate_size));
  if (host.split() != expert::v1::WIDTH && host.split() != expert::v1::EXPERTS) {
    return FailedPreconditionF("split {}, expected width or experts", SplitName(host.split()));
  }
  RETURN_IF_ERROR(
      CheckRange("experts", host.first_expert(), host.num_shard_experts(), model.num_experts));
  RETURN_IF_ERROR(
      CheckRange("width", host.first_width(), host.num_shard_width(), model.moe_intermediate_size));
  if (host.max_top_k() < static_cast<uint32_t>(model.num_experts_per_tok)) {
    return FailedPreconditionF("takes at most {} experts a row, the model needs {}",
                               host.max_top_k(), model.num_experts_per_tok);
  }
  if (host.max_rows() < static_cast<uint32_t>(model.max_rows)) {
    return FailedPreconditionF(
        "takes at most {} rows a call, this trunk sends up to {} "
        "(--max_batch_tokens)",
        host.max_rows(), model.max_rows);
  }
  // f32 activations, ids, weights; 128 bytes hold every header.
  const uint64_t largest = static_cast<uint64_t>(model.max_rows) *
                               (static_cast<uint64_t>(model.hidden_size) * sizeof(float) +
                                static_cast<uint64_t>(model.num_experts_per_tok) * 6) +
                           128;
  const uint64_t limit = std::min<uint64_t>(host.max_message_bytes(), kMaxMessageBytes);
  if (limit < largest) {
    return FailedPreconditionF(
        "takes messages of at most {} bytes, {} rows need {} "
        "(--max_batch_tokens)",
        limit, model.max_rows, largest);
  }
  return absl::OkStatus();
}

absl::Status CheckSameShard(const DescribeResponse& first, const std::string& first_address,
                            const DescribeResponse& second) {
  if (first.split() == second.split() && first.first_expert() == second.first_expert() &&
      first.num_shard_experts() == second.num_shard_experts() &&
      first.first_width() == second.first_width() &&
      first.num_shard_width() == second.num_shard_width() &&
      first.pool_format() == second.pool_format()) {
    return absl::OkStatus();
  }
  const auto told = [](const DescribeResponse& host) {
    return fmt::format("{} experts from {}, width {} from {}, {}, split by {}",
                       host.num_shard_experts(), host.first_expert(), host.num_shard_width(),
                       host.first_width(), Printable(host.pool_format()), SplitName(host.split()));
  };
  return FailedPreconditionF("serves {}; replica {} of the same shard serves {}", told(second),
                             Printable(first_address), told(first));
}

absl::Status CheckCoverage(std::span<const ShardHost> shards) {
  const DescribeResponse& first = shards.front().description;
  std::vector<Interval> experts, width;
  for (const ShardHost& host : shards) {
    const DescribeResponse& shard = host.description;
    if (shard.split() != first.split()) {
      return FailedPreconditionF("{} is split by {}, {} by {}", Named(shards.front()),
                                 SplitName(first.split()), Named(host), SplitName(shard.split()));
    }
    if (shard.pool_format() != first.pool_format()) {
      return FailedPreconditionF("{} has pool format {}, {} has {}", Named(shards.front()),
                                 Printable(first.pool_format()), Named(host),
                                 Printable(shard.pool_format()));
    }
    // The direction that is not split is served whole by everybody.
    const bool by_experts = shard.split() == expert::v1::EXPERTS;
    const bool whole = by_experts ? shard.num_shard_width() == shard.moe_intermediate_size()
                                  : shard.num_shard_experts() == shard.num_experts();
    if (!whole) {
      return FailedPreconditionF("{} is split by {} but serves {} of {} {}", Named(host),
                                 SplitName(shard.split()),
                                 by_experts ? shard.num_shard_width() : shard.num_shard_experts(),
                                 by_experts ? shard.moe_intermediate_size() : shard.num_experts(),
                                 by_experts ? "columns of the width" : "experts");
    }
    experts.push_back(
        {shard.first_expert(), shard.first_expert() + shard.num_shard_experts(), &host});
    width.push_back({shard.first_width(), shard.first_width() + shard.num_shard_width(), &host});
  }
  return first.split() == expert::v1::EXPERTS
             ? CheckLine("experts", std::move(experts), first.num_experts())
             : CheckLine("columns of the expert width", std::move(width),
                         first.moe_intermediate_size());
}

}  // namespace banyan::trunk
