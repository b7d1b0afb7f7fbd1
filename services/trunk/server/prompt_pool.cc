#include "services/trunk/server/prompt_pool.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "common/base/file_descriptor.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

// Experts [0, count) of a layer that a pack has; none where it begins behind them.
std::span<const std::byte> ExpertsOf(const LentPool& pool, size_t moe_layer, int32_t count) {
  const ExpertPackHeader& header = pool.header();
  const int32_t have = std::clamp(count - header.first_expert, 0, header.num_shard_experts);
  if (have == 0) return {};
  return {pool.Expert(static_cast<int64_t>(moe_layer), header.first_expert),
          static_cast<size_t>(have) * static_cast<size_t>(pool.layout().expert_bytes)};
}

PromptExpertPool::Slice SliceOf(const LentPool& pool, const ModelConfig& config) {
  const ExpertPackHeader& header = pool.header();
  PromptExpertPool::Slice slice;
  slice.first_expert = header.first_expert;
  slice.num_experts = header.num_shard_experts;
  slice.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (size_t i = 0; i < header.moe_layers.size(); ++i) {
    slice.layers[static_cast<size_t>(header.moe_layers[i])] =
        pool.Expert(static_cast<int64_t>(i), header.first_expert);
  }
  return slice;
}

// One kind of slice for all: an operation of the device has experts of one size.
absl::Status CheckAlike(const LentPool& first, const LentPool& other) {
  const ExpertPackHeader& a = first.header();
  const ExpertPackHeader& b = other.header();
  if (a.format == b.format && a.num_shard_width == b.num_shard_width) return absl::OkStatus();
  return FailedPreconditionF("shard {} has {} in widths of {}, shard {} {} in widths of {}",
                             b.shard_index, PoolFormatName(b.format), b.num_shard_width,
                             a.shard_index, PoolFormatName(a.format), a.num_shard_width);
}

}  // namespace

absl::Status BorrowPromptPool(const ExpertDirectory& directory, const ExpectedModel& model,
                              const ModelConfig& config, const PromptExpertShare& share,
                              int32_t long_prompt_tokens, Backend* backend, PromptPool* out) {
  PromptExpertPool& experts = out->experts;
  for (int32_t shard = 0; shard < directory.num_shards(); ++shard) {
    ASSIGN_OR_RETURN(FileDescriptor file, directory.BorrowPool(shard));
    ASSIGN_OR_RETURN(std::unique_ptr<LentPool> pool,
                     LentPool::Open(std::move(file), model, shard, directory.num_shards()));
    if (shard > 0) RETURN_IF_ERROR(CheckAlike(*out->pools[0], *pool));
    experts.slices.push_back(SliceOf(*pool, config));
    out->pools.push_back(std::move(pool));
  }
  const LentPool& first = *out->pools[0];
  experts.long_prompt_tokens = long_prompt_tokens;
  experts.format = first.header().format;
  experts.width = first.header().num_shard_width;
  experts.expert_bytes = first.layout().expert_bytes;
  // Where we choose, it is by the fastest that any layer's came: others may have been at work on
  // this machine's memory meanwhile. Until then as many are mapped as for the fastest link there
  // is.
  const auto chosen = [&](double rate) {
    return ChosenPromptExperts(config.num_experts, experts.format, rate);
  };
  experts.own_experts = share.chosen ? chosen(std::numeric_limits<double>::infinity())
                                     : GivenPromptExperts(config.num_experts, share.percent);
  for (size_t layer = 0; layer < model.moe_layers.size(); ++layer) {
    for (const std::unique_ptr<LentPool>& pool : out->pools) {
      const std::span<const std::byte> memory = ExpertsOf(*pool, layer, experts.own_experts.back());
      if (memory.empty()) continue;
      ASSIGN_OR_RETURN(out->bytes_per_second, backend->MapHost(memory));
    }
  }
  if (!share.chosen) return absl::OkStatus();
  experts.own_experts = chosen(out->bytes_per_second);
  if (experts.own_experts.back() == 0) {
    return FailedPreconditionF("the device reads host memory at {:.1f} GB/s",
                               out->bytes_per_second / 1e9);
  }
  return absl::OkStatus();
}

}  // namespace banyan::trunk
