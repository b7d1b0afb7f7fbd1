#include "common/plan/tensor_parallel.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/decoder_memory.h"

namespace banyan {
namespace {

absl::Status CheckDivides(const char* what, int64_t value, int32_t size) {
  if (value % size == 0) return absl::OkStatus();
  return InvalidArgumentF("--tensor_parallel {}: {} is {}, expected a multiple of {}", size, what,
                          value, size);
}

// Heads that may be on several devices.
absl::Status CheckSharedHeads(const char* what, int32_t heads, int32_t size) {
  if (heads % size == 0 || size % heads == 0) return absl::OkStatus();
  return InvalidArgumentF("--tensor_parallel {}: {} is {}, expected a multiple or a divisor of {}",
                          size, what, heads, size);
}

int32_t AtLeastOne(int32_t heads, int32_t size) { return std::max(1, heads / size); }

// The rank's part of `count` things, of which it has `count / size`, or one that others have too.
IndexRange Part(int64_t count, const TensorRank& rank) {
  const int64_t begin = rank.rank * count / rank.size;
  return {begin, begin + std::max<int64_t>(1, count / rank.size)};
}

IndexRange Scaled(const IndexRange& range, int64_t by) {
  return {range.begin * by, range.end * by};
}
IndexRange Shifted(const IndexRange& range, int64_t by) {
  return {range.begin + by, range.end + by};
}

// Rows of tensors of the DeltaNet; packing: model spec 2.5.
struct DeltaNetRows {
  const ModelConfig& config;
  IndexRange keys;
  IndexRange values;

  DeltaNetRows(const ModelConfig& c, const TensorRank& rank)
      : config(c),
        keys(Part(c.linear_num_key_heads, rank)),
        values(Part(c.linear_num_value_heads, rank)) {}

  // By key head: what `before` counts of the key head itself, then twice `each` of its value heads.
  std::vector<IndexRange> Packed(int64_t before, int64_t each) const {
    const int64_t ratio = config.linear_num_value_heads / config.linear_num_key_heads;
    const int64_t group = before + 2 * ratio * each;
    std::vector<IndexRange> rows;
    for (int64_t key = keys.begin; key < keys.end; ++key) {
      const int64_t first = key * group;
      const IndexRange own = {std::max(values.begin - key * ratio, int64_t{0}),
                              std::min(values.end - key * ratio, ratio)};
      rows.push_back({first, first + before});
      rows.push_back(Shifted(Scaled(own, each), first + before));
      rows.push_back(Shifted(Scaled(own, each), first + before + ratio * each));
    }
    return rows;
  }

  // Channels of the convolution: all queries, all keys, all values.
  std::vector<IndexRange> Channels() const {
    const IndexRange key_channels = Scaled(keys, config.linear_key_head_dim);
    return {key_channels, Shifted(key_channels, config.linear_key_dim()),
            Shifted(Scaled(values, config.linear_value_head_dim), 2 * config.linear_key_dim())};
  }
};

std::vector<IndexRange> Joined(const std::vector<IndexRange>& ranges) {
  std::vector<IndexRange> out;
  for (const IndexRange& range : ranges) {
    if (range.size() == 0) continue;
    if (!out.empty() && out.back().end == range.begin) {
      out.back().end = range.end;
    } else {
      out.push_back(range);
    }
  }
  return out;
}

}  // namespace

absl::Status CheckTensorParallelSize(int32_t size) {
  if (size == 1 || size == 2 || size == 4 || size == 8) return absl::OkStatus();
  return InvalidArgumentF("--tensor_parallel {}: expected 1, 2, 4 or 8", size);
}

absl::Status CheckTensorParallel(const ModelConfig& config, int32_t size) {
  RETURN_IF_ERROR(CheckTensorParallelSize(size));
  RETURN_IF_ERROR(CheckDivides("vocab_size", config.vocab_size, size));
  if (CountMixers(config, MixerKind::kFullAttention) > 0) {
    RETURN_IF_ERROR(CheckDivides("num_attention_heads", config.num_attention_heads, size));
    RETURN_IF_ERROR(CheckSharedHeads("num_key_value_heads", config.num_key_value_heads, size));
  }
  if (CountMixers(config, MixerKind::kLinearAttention) > 0) {
    RETURN_IF_ERROR(CheckDivides("linear_num_value_heads", config.linear_num_value_heads, size));
    RETURN_IF_ERROR(CheckSharedHeads("linear_num_key_heads", config.linear_num_key_heads, size));
  }
  if (CountMlps(config, MlpKind::kMoe) > 0) {
    RETURN_IF_ERROR(CheckDivides("shared_expert_intermediate_size",
                                 config.shared_expert_intermediate_size, size));
  }
  if (CountMlps(config, MlpKind::kDense) > 0) {
    RETURN_IF_ERROR(CheckDivides("intermediate_size", config.intermediate_size, size));
  }
  return absl::OkStatus();
}

ModelConfig RankConfig(const ModelConfig& config, int32_t size) {
  ModelConfig out = config;
  if (size == 1) return out;
  out.vocab_size /= size;
  out.num_attention_heads = AtLeastOne(config.num_attention_heads, size);
  out.num_key_value_heads = AtLeastOne(config.num_key_value_heads, size);
  out.linear_num_key_heads = AtLeastOne(config.linear_num_key_heads, size);
  out.linear_num_value_heads = AtLeastOne(config.linear_num_value_heads, size);
  out.shared_expert_intermediate_size /= size;
  out.intermediate_size /= size;
  return out;
}

int64_t TensorSlice::num_rows() const {
  int64_t count = 0;
  for (const IndexRange& range : rows) count += range.size();
  return count;
}

bool TensorSlice::IsContiguous(const Shape& shape) const {
  return rows.size() == 1 && cols.size() * shape.dim(0) == shape.num_elements();
}

TensorSlice SliceOf(std::string_view name, const Shape& shape, const ModelConfig& config,
                    const TensorRank& rank) {
  CHECK(rank.rank >= 0 && rank.rank < rank.size);
  const int64_t num_rows = shape.dim(0);
  const int64_t num_cols = num_rows == 0 ? 0 : shape.num_elements() / num_rows;
  TensorSlice slice = {.rows = {{0, num_rows}}, .cols = {0, num_cols}};
  if (rank.size == 1) return slice;
  const auto is = [name](std::string_view suffix) { return name.ends_with(suffix); };
  const DeltaNetRows delta(config, rank);
  if (is("embed_tokens.weight") || is("lm_head.weight") || is(".gate_proj.weight") ||
      is(".up_proj.weight")) {
    slice.rows = {Part(num_rows, rank)};
  } else if (is(".down_proj.weight") || is(".self_attn.o_proj.weight") ||
             is(".linear_attn.out_proj.weight")) {
    slice.cols = Part(num_cols, rank);
  } else if (is(".self_attn.q_proj.weight")) {
    slice.rows = {Scaled(Part(config.num_attention_heads, rank), 2 * int64_t{config.head_dim})};
  } else if (is(".self_attn.k_proj.weight") || is(".self_attn.v_proj.weight")) {
    slice.rows = {Scaled(Part(config.num_key_value_heads, rank), config.head_dim)};
  } else if (is(".linear_attn.in_proj_qkvz.weight")) {
    slice.rows =
        delta.Packed(2 * int64_t{config.linear_key_head_dim}, config.linear_value_head_dim);
  } else if (is(".linear_attn.in_proj_ba.weight")) {
    slice.rows = delta.Packed(0, 1);
  } else if (is(".linear_attn.conv1d.weight")) {
    slice.rows = delta.Channels();
  } else if (is(".linear_attn.A_log") || is(".linear_attn.dt_bias")) {
    slice.rows = {delta.values};
  }
  slice.rows = Joined(slice.rows);
  return slice;
}

}  // namespace banyan
