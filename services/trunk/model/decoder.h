// The forward pass of Qwen3-Next over ops.h (model spec section 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "services/trunk/engine/forward_pass.h"
#include "services/trunk/experts/expert_transport.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/state/state_history.h"

namespace banyan::trunk {

struct DecoderOptions {
  int32_t max_rows = 512;          // of one step
  int32_t num_slots = 32;          // recurrent-state slots: sequences alive at once
  int32_t num_state_copies = 0;    // of slots, to go back to: StateHistory
  int32_t num_pages = 0;           // KV pages of kPageTokens tokens
  int32_t max_logits_rows = 32;    // of one ComputeLogits call
  int32_t max_context_tokens = 0;  // of one sequence; 0: the model's max_position_embeddings
  TrunkFormat trunk_format = TrunkFormat::kBf16;
  DType kv_dtype = DType::kF32;  // of keys and values in the cache: AttentionShape::cache_dtype
};

// Bytes, before anything is allocated.
struct DecoderMemory {
  // Trunk tensors in the trunk's format, less a table kept in host memory. The CPU reads matrices
  // of bf16 where the files are mapped.
  size_t weight_bytes = 0;
  size_t kv_cache_bytes = 0;
  size_t recurrent_state_bytes = 0;
  size_t activation_bytes = 0;
  size_t scratch_bytes = 0;  // of the operations and the step's plan

  // What Create allocates.
  size_t allocated_bytes() const {
    return kv_cache_bytes + recurrent_state_bytes + activation_bytes + scratch_bytes;
  }
};

// Sees what flows between the layers. Arrays are host memory, f32 unless said, valid during the
// call. Costs a copy per layer; null in production.
class DecoderObserver {
 public:
  virtual ~DecoderObserver() = default;
  // Residual stream [num_rows, hidden_size] after the embedding.
  virtual void OnEmbeddings(std::span<const float> hidden) = 0;
  // Residual stream after the layer's mixer, and after its MLP.
  virtual void OnMixer(int32_t layer, std::span<const float> hidden) = 0;
  virtual void OnLayer(int32_t layer, std::span<const float> hidden) = 0;
  // [num_rows, top_k]; MoE layers only.
  virtual void OnRouting(int32_t layer, std::span<const uint16_t> expert_ids,
                         std::span<const float> weights) = 0;
  // [num_rows, hidden_size] after the final norm.
  virtual void OnFinalNorm(std::span<const float> hidden) = 0;
};

// All memory is allocated in Create, none in a step.
class Decoder : public ForwardPass {
 public:
  // What Create will need. `backend` is asked for its scratch only.
  static DecoderMemory Plan(const ModelConfig& config, const DecoderOptions& options,
                            const Backend& backend);

  // `checkpoint`, `backend`, `experts` and `observer` (may be null) are borrowed and outlive the
  // decoder. A backend serves one decoder. kInvalidArgument: an option out of range, with the
  // numbers; kNotFound, kDataLoss: a tensor absent or of another shape; kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const ModelConfig& config,
                                                         const DecoderOptions& options,
                                                         const Checkpoint& checkpoint,
                                                         Backend* backend, ExpertTransport* experts,
                                                         DecoderObserver* observer = nullptr);
  ~Decoder() override;

  const Limits& limits() const override;
  absl::Status Forward(const Step& step) override;
  absl::Status ComputeLogits(std::span<const int32_t> rows, std::span<float> logits) override;
  uint64_t weight_bytes_read() const override;
  // What the slots held at earlier positions; num_state_copies of it.
  StateHistory& state_history();

 private:
  class Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::trunk
