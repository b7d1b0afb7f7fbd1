#include "common/plan/decoder_memory.h"

#include <algorithm>

#include "common/plan/device_arena.h"

namespace banyan {
namespace {

constexpr size_t kSegmentBytes = 28;  // step_planner.cc holds PlanSegment to it

}  // namespace

int32_t CountMixers(const ModelConfig& config, MixerKind kind) {
  return static_cast<int32_t>(std::count(config.mixers.begin(), config.mixers.end(), kind));
}

int32_t CountMlps(const ModelConfig& config, MlpKind kind) {
  return static_cast<int32_t>(std::count(config.mlps.begin(), config.mlps.end(), kind));
}

AttentionShape AttentionShapeOf(const ModelConfig& config, const DecoderOptions& options) {
  if (CountMixers(config, MixerKind::kFullAttention) == 0) return {};
  return {.num_heads = config.num_attention_heads,
          .num_kv_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .rotary_dim = config.rotary_dim,
          .eps = config.rms_norm_eps,
          .cache_dtype = options.kv_dtype};
}

DeltaNetShape DeltaNetShapeOf(const ModelConfig& config) {
  if (CountMixers(config, MixerKind::kLinearAttention) == 0) return {};
  return {.num_key_heads = config.linear_num_key_heads,
          .num_value_heads = config.linear_num_value_heads,
          .key_head_dim = config.linear_key_head_dim,
          .value_head_dim = config.linear_value_head_dim,
          .conv_taps = config.linear_conv_kernel_dim,
          .eps = config.rms_norm_eps};
}

int32_t MaxPositionOf(const ModelConfig& config, const DecoderOptions& options) {
  return options.max_context_tokens > 0 ? options.max_context_tokens
                                        : config.max_position_embeddings;
}

namespace {

// Of what the mixers and FFNs read; the head takes few rows.
int32_t MaxColumns(const ModelConfig& c) {
  int32_t columns = c.hidden_size;
  if (CountMixers(c, MixerKind::kLinearAttention) > 0) {
    columns = std::max(columns, static_cast<int32_t>(c.linear_value_dim()));
  }
  if (CountMixers(c, MixerKind::kFullAttention) > 0) {
    columns = std::max(columns, c.num_attention_heads * c.head_dim);
  }
  if (CountMlps(c, MlpKind::kMoe) > 0) {
    columns = std::max(columns, static_cast<int32_t>(c.shared_expert_intermediate_size));
  }
  if (CountMlps(c, MlpKind::kDense) > 0) {
    columns = std::max(columns, static_cast<int32_t>(c.intermediate_size));
  }
  return columns;
}

HostExpertShape HostExpertsOf(const ModelConfig& c, const DecoderOptions& options) {
  if (!options.prompt_experts || CountMlps(c, MlpKind::kMoe) == 0) return {};
  return {.hidden_size = c.hidden_size,
          .width = c.moe_intermediate_size,
          .top_k = c.num_experts_per_tok};
}

}  // namespace

OpLimits OpLimitsOf(const ModelConfig& config, const DecoderOptions& options) {
  return {.max_rows = options.max_rows,
          .max_segments = std::min(options.max_rows, options.num_slots),
          .max_position = MaxPositionOf(config, options),
          .num_experts = config.num_experts,
          .attention = AttentionShapeOf(config, options),
          .delta_net = DeltaNetShapeOf(config),
          .max_logits_rows = options.max_logits_rows,
          .vocab_size = config.vocab_size,
          .max_columns = MaxColumns(config),
          .tensor_parallel = options.tensor_parallel,
          .max_reduced = int64_t{options.max_rows} * config.hidden_size,
          .max_parts = HasHalves(options) ? 2 : 1,
          .host_experts = HostExpertsOf(config, options)};
}

bool HasHalves(const DecoderOptions& options) {
  return options.halved_rows > 0 && options.halved_rows <= options.max_rows;
}

int32_t BufferRows(const DecoderOptions& options) {
  return options.max_rows + (HasHalves(options) ? kHalfGridRows - 1 : 0);
}

int32_t MaxCallRows(const DecoderOptions& options) {
  if (!HasHalves(options)) return options.max_rows;
  const int32_t largest_half = (options.max_rows + kHalfGridRows + 1) / 2;
  // Steps that cannot be cut have a segment of at most a grid's rows.
  const int32_t undivided = std::max(options.halved_rows - 1, kHalfGridRows);
  return std::min(options.max_rows, std::max(largest_half, undivided));
}

size_t KvPageBytes(const AttentionShape& shape) {
  return static_cast<size_t>(shape.num_kv_heads) * static_cast<size_t>(shape.head_dim) *
         kKvPageTokens * DTypeSizeBytes(shape.cache_dtype);
}

size_t KvCacheBytes(const AttentionShape& shape, int32_t num_layers, int32_t num_pages) {
  return 2 * static_cast<size_t>(num_layers) * static_cast<size_t>(num_pages) * KvPageBytes(shape);
}

size_t RecurrentStateBytes(const DeltaNetShape& shape, int32_t num_layers, int32_t num_slots) {
  const auto slot = static_cast<size_t>(shape.state_floats() + shape.conv_state_floats());
  return static_cast<size_t>(num_layers) * static_cast<size_t>(num_slots) * slot * sizeof(float);
}

ActivationSizes ActivationSizesOf(const ModelConfig& c, const DecoderOptions& options) {
  const int64_t rows = BufferRows(options);
  const int64_t hidden = c.hidden_size;
  const int64_t linear = CountMixers(c, MixerKind::kLinearAttention) > 0 ? rows : 0;
  const int64_t full = CountMixers(c, MixerKind::kFullAttention) > 0 ? rows : 0;
  const int64_t q_dim = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_dim = int64_t{c.num_key_value_heads} * c.head_dim;
  const bool moe = CountMlps(c, MlpKind::kMoe) > 0;
  const bool dense = CountMlps(c, MlpKind::kDense) > 0;
  const int64_t width =
      std::max(moe ? c.shared_expert_intermediate_size : 0, dense ? c.intermediate_size : 0);
  const int64_t routed = moe ? rows : 0;
  const bool rounded = options.expert_activations == DType::kBF16;
  return {.hidden = rows * hidden,
          .mixer_out = rows * hidden,
          .final_out = rows * hidden,
          .logits_rows = options.max_logits_rows * hidden,
          .logits = int64_t{options.max_logits_rows} * c.vocab_size,
          .top_scores = int64_t{options.max_logits_rows} * kMaxTopLogits,
          .top_ids = int64_t{options.max_logits_rows} * kMaxTopLogits,
          .top_bounded = options.max_logits_rows,
          .qkvz = linear * (c.linear_conv_dim() + c.linear_value_dim()),
          .ba = linear * 2 * c.linear_num_value_heads,
          .qkv = linear * c.linear_conv_dim(),
          .log_decay = linear * c.linear_num_value_heads,
          .beta = linear * c.linear_num_value_heads,
          .delta_out = linear * c.linear_value_dim(),
          .q_gate = full * 2 * q_dim,
          .k = full * kv_dim,
          .v = full * kv_dim,
          .attention_out = full * q_dim,
          .normed = rows * hidden,
          .expert_rows = rounded ? routed * hidden : 0,
          .expert_ids = routed * c.num_experts_per_tok,
          .expert_weights = routed * c.num_experts_per_tok,
          .routed = routed * hidden,
          .router_logits = routed * c.num_experts,
          .shared_gate_logit = routed,
          .ffn_gate = rows * width,
          .ffn_up = rows * width,
          .ffn_out = rows * hidden};
}

size_t ActivationSizes::StageBytes() const {
  uint64_t most = 0;
  ForEachStage([&most](std::initializer_list<int64_t> stage) {
    uint64_t bytes = 0;
    for (const int64_t elements : stage) {
      bytes += DevicePieceBytes(static_cast<uint64_t>(elements) * sizeof(float));
    }
    most = std::max(most, bytes);
  });
  return most;
}

size_t ActivationBytes(const ActivationSizes& sizes) {
  size_t bytes = 0;
  sizes.ForEach(
      [&bytes](int64_t elements, size_t each) { bytes += static_cast<size_t>(elements) * each; });
  return bytes;
}

size_t SharedActivationBytes(const ActivationSizes& s) {
  const int64_t halves = s.expert_ids + s.expert_rows;
  const int64_t floats = (s.expert_rows > 0 ? 0 : s.normed) + s.expert_weights + s.routed +
                         s.top_scores + s.top_ids + s.top_bounded;
  return static_cast<size_t>(halves) * sizeof(uint16_t) +
         static_cast<size_t>(floats) * sizeof(float);
}

int ExpertRowBlocks(const DecoderOptions& options) { return HasHalves(options) ? 4 : 2; }

size_t ExpertRowBlockBytes(const ActivationSizes& s, const DecoderOptions& options, bool on_host) {
  const auto rows = static_cast<size_t>(MaxCallRows(options));
  const auto all = static_cast<size_t>(BufferRows(options));
  if (s.expert_rows > 0) return static_cast<size_t>(s.expert_rows) / all * rows * sizeof(uint16_t);
  const bool sent = !on_host && s.routed > 0;
  return sent ? static_cast<size_t>(s.normed) / all * rows * sizeof(float) : 0;
}

int64_t MaxStepPageIds(const StepTableOptions& o) {
  const int64_t per_sequence = (int64_t{o.max_position} + kKvPageTokens - 1) / kKvPageTokens;
  return std::min(o.max_rows, o.num_slots) * per_sequence;
}

size_t StepTableBytes(const StepTableOptions& o) {
  const auto rows = static_cast<size_t>(o.max_rows);
  return rows * (2 * sizeof(int32_t) + static_cast<size_t>(o.rotary_dim) * sizeof(float)) +
         static_cast<size_t>(MaxStepPageIds(o)) * sizeof(int32_t) +
         // Of the step, and of its halves, to which the cut adds one.
         static_cast<size_t>(2 * std::min(o.max_rows, o.num_slots) + 1) * kSegmentBytes +
         static_cast<size_t>(o.num_slots) * sizeof(int32_t);
}

DecoderMemory PlanDecoderMemory(const ModelConfig& config, const DecoderOptions& options,
                                size_t scratch_bytes) {
  const ActivationSizes activations = ActivationSizesOf(config, options);
  return {.kv_cache_bytes =
              KvCacheBytes(AttentionShapeOf(config, options),
                           CountMixers(config, MixerKind::kFullAttention), options.num_pages),
          .recurrent_state_bytes = RecurrentStateBytes(
              DeltaNetShapeOf(config), CountMixers(config, MixerKind::kLinearAttention),
              options.num_slots + options.num_state_copies),
          .activation_bytes = ActivationBytes(activations),
          .scratch_bytes = scratch_bytes,
          .step_table_bytes = StepTableBytes({.max_rows = options.max_rows,
                                              .num_slots = options.num_slots,
                                              .max_position = MaxPositionOf(config, options),
                                              .rotary_dim = config.rotary_dim}),
          .row_block_bytes = static_cast<size_t>(ExpertRowBlocks(options)) *
                             ExpertRowBlockBytes(activations, options, /*on_host=*/true)};
}

}  // namespace banyan
