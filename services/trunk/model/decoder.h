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
#include "common/plan/decoder_memory.h"
#include "common/plan/tensor_parallel.h"
#include "services/trunk/engine/forward_pass.h"
#include "services/trunk/experts/expert_transport.h"
#include "services/trunk/model/expert_answers.h"
#include "services/trunk/model/prompt_experts.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/state/state_history.h"

namespace banyan::trunk {

using banyan::DecoderMemory;   // NOLINT(misc-unused-using-decls): part of this interface
using banyan::DecoderOptions;  // NOLINT(misc-unused-using-decls)

// Sees what flows between the layers, of steps that then run undivided. Arrays are host memory, f32
// unless said, valid during the call. Costs a copy per layer; null in production.
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

// A decoder's place among those that compute a model together (parallel_decoder.h): each has its
// slice of the weights on a backend whose AllReduce joins them, and a thread of its own. The first
// one asks the experts.
struct DecoderRank {
  TensorRank tensor;
  ExpertAnswers* answers = nullptr;  // of all ranks; null: alone
  // False where one of them has an observer: all of them queue their steps in the same way.
  bool may_record = true;
};

// All memory is allocated in Create, none in a step.
class Decoder : public ForwardPass {
 public:
  // What Create will need. `backend` is asked for its scratch only.
  static DecoderMemory Plan(const ModelConfig& config, const DecoderOptions& options,
                            const Backend& backend);

  // `checkpoint`, `backend`, `experts`, `observer` (may be null) and the pack of `sources` are
  // borrowed and outlive the decoder; the threads of `sources` are used during the call. A backend
  // serves one decoder. `experts` is null but for rank 0. kInvalidArgument: an option out of range,
  // with the numbers; kNotFound, kDataLoss: a tensor absent or of another shape;
  // kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const ModelConfig& config, const DecoderOptions& options, const Checkpoint& checkpoint,
      Backend* backend, ExpertTransport* experts, DecoderObserver* observer = nullptr,
      const DecoderRank& rank = {}, const TrunkSources& sources = {});
  ~Decoder() override;

  // vocab_size: of this rank.
  const Limits& limits() const override;
  absl::Status Forward(const Step& step) override;
  absl::Status RunHead(const HeadQuery& query) override;
  // Of a rank that does not ask the experts, before the first step: their answers are where `asker`
  // has them.
  void ReadAnswersOf(const Decoder& asker);
  // From the next step on the experts of `pool` are computed here for long prompts. Where the
  // options say prompt_experts and steps are not halved.
  void ComputePromptExperts(PromptExpertPool pool);
  absl::Status Fault() override;
  uint64_t weight_bytes_read() const override;
  uint64_t expert_bytes_read() const override;
  // What the slots held at earlier positions; num_state_copies of it.
  StateHistory& state_history();

 private:
  class Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::trunk
