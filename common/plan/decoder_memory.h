// What the trunk's forward pass allocates beside its weights, from the model and a few limits. The
// decoder allocates by these functions, so a plan and the process agree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "common/config/model_config.h"
#include "common/plan/op_limits.h"
#include "common/plan/trunk_format.h"
#include "common/tensor/dtype.h"

namespace banyan {

struct DecoderOptions {
  int32_t max_rows = 512;          // of one step
  int32_t num_slots = 32;          // recurrent-state slots: sequences alive at once
  int32_t num_state_copies = 0;    // of slots, to go back to: StateHistory
  int32_t num_pages = 0;           // KV pages of kKvPageTokens tokens
  int32_t max_logits_rows = 32;    // of one RunHead call
  int32_t max_context_tokens = 0;  // of one sequence; 0: the model's max_position_embeddings
  TrunkFormat trunk_format = TrunkFormat::kBf16;
  DType kv_dtype = DType::kF32;  // of keys and values in the cache: AttentionShape::cache_dtype
  DType expert_activations = DType::kF32;  // of the rows that the experts get; or kBF16
  // Steps of so many rows and more run as two halves (docs/adr/two-halves.md), where they can be
  // cut; 0: none does.
  int32_t halved_rows = 0;
  // Whether the trunk may compute routed experts of long prompts (docs/adr/prompt-experts.md).
  bool prompt_experts = false;
  // Devices that share the model. `config` beside these options is then a device's: RankConfig
  // (tensor_parallel.h).
  int32_t tensor_parallel = 1;
};

int32_t CountMixers(const ModelConfig& config, MixerKind kind);
int32_t CountMlps(const ModelConfig& config, MlpKind kind);

// All zero where the model has no such layer.
AttentionShape AttentionShapeOf(const ModelConfig& config, const DecoderOptions& options);
DeltaNetShape DeltaNetShapeOf(const ModelConfig& config);
int32_t MaxPositionOf(const ModelConfig& config, const DecoderOptions& options);

// Halves begin at a multiple of so many rows of a segment, and of the buffers.
inline constexpr int32_t kHalfGridRows = 64;
// Whether any step runs as two halves.
bool HasHalves(const DecoderOptions& options);
// Of the buffers that a step works in: those of the second half begin on the grid.
int32_t BufferRows(const DecoderOptions& options);
// The most that the experts get in one call. A cut is at most half the grid away from the middle.
int32_t MaxCallRows(const DecoderOptions& options);
OpLimits OpLimitsOf(const ModelConfig& config, const DecoderOptions& options);

// Keys, or values, of one page in one layer.
size_t KvPageBytes(const AttentionShape& shape);
// Both, of all pages and layers.
size_t KvCacheBytes(const AttentionShape& shape, int32_t num_layers, int32_t num_pages);

size_t RecurrentStateBytes(const DeltaNetShape& shape, int32_t num_layers, int32_t num_slots);

// Elements of each buffer that a step works in (services/trunk/model/activations.h); f32 but for
// top_ids and top_bounded, i32, expert_ids, u16, and expert_rows, bf16.
struct ActivationSizes {
  int64_t hidden = 0, mixer_out = 0, final_out = 0, logits_rows = 0, logits = 0;
  int64_t top_scores = 0, top_ids = 0, top_bounded = 0;
  int64_t qkvz = 0, ba = 0, qkv = 0, log_decay = 0, beta = 0, delta_out = 0;
  int64_t q_gate = 0, k = 0, v = 0, attention_out = 0;
  // expert_rows: none where the experts get `normed` as it is.
  int64_t normed = 0, expert_rows = 0, expert_ids = 0, expert_weights = 0, routed = 0;
  int64_t router_logits = 0, shared_gate_logit = 0, ffn_gate = 0, ffn_up = 0, ffn_out = 0;

  // f32 ones that hold nothing once the stage is over to which they belong, a mixer, an MLP's first
  // half or the head: those of all stages lie in the same place.
  template <typename Add>
  void ForEachStage(const Add& add) const {
    add(std::initializer_list<int64_t>{qkvz, ba, qkv, log_decay, beta, delta_out});
    add(std::initializer_list<int64_t>{q_gate, k, v, attention_out});
    add(std::initializer_list<int64_t>{router_logits, ffn_gate, ffn_up});
    add(std::initializer_list<int64_t>{logits_rows, logits});
  }
  // Each begins at a multiple of kDevicePieceAlignment.
  size_t StageBytes() const;

  // Calls add(elements, bytes of one) for each other one, and for what all stages share.
  template <typename Add>
  void ForEach(const Add& add) const {
    for (const int64_t elements : {hidden, mixer_out, final_out, top_scores, top_ids, top_bounded,
                                   normed, expert_weights, routed, shared_gate_logit, ffn_out}) {
      add(elements, sizeof(float));
    }
    add(expert_ids, sizeof(uint16_t));
    add(expert_rows, sizeof(uint16_t));
    add(static_cast<int64_t>(StageBytes()), size_t{1});
  }
};
ActivationSizes ActivationSizesOf(const ModelConfig& config, const DecoderOptions& options);
size_t ActivationBytes(const ActivationSizes& sizes);
// Of them, those that have a side on the host where the device has memory of its own.
size_t SharedActivationBytes(const ActivationSizes& sizes);

// Blocks of host memory from which the experts' rows are sent as they lie, while the bytes of
// others are still on their way: for each call under way two. Each holds the rows of a call.
int ExpertRowBlocks(const DecoderOptions& options);
// Of one block. None where the device computes on the rows where the transport reads them.
size_t ExpertRowBlockBytes(const ActivationSizes& sizes, const DecoderOptions& options,
                           bool on_host);

// The host's tables of a step (services/trunk/model/step_planner.h).
struct StepTableOptions {
  int32_t max_rows = 0;
  int32_t num_slots = 0;
  int32_t max_position = 0;
  int32_t rotary_dim = 0;
};
int64_t MaxStepPageIds(const StepTableOptions& options);
size_t StepTableBytes(const StepTableOptions& options);

// Bytes, before anything is allocated.
struct DecoderMemory {
  size_t kv_cache_bytes = 0;
  size_t recurrent_state_bytes = 0;
  size_t activation_bytes = 0;
  size_t scratch_bytes = 0;     // of the operations
  size_t step_table_bytes = 0;  // host memory, whatever the device
  size_t row_block_bytes = 0;   // ExpertRowBlocks of a device that is the host

  // What the decoder allocates on a device that is the host.
  size_t allocated_bytes() const {
    return kv_cache_bytes + recurrent_state_bytes + activation_bytes + scratch_bytes +
           step_table_bytes + row_block_bytes;
  }
};
// `scratch_bytes`: of the backend for OpLimitsOf (op_scratch.h).
DecoderMemory PlanDecoderMemory(const ModelConfig& config, const DecoderOptions& options,
                                size_t scratch_bytes);

}  // namespace banyan
