// Which tensors a model needs, and whether a checkpoint has exactly these.
// Names and shapes: model spec section 2. Experts come per expert
// (mlp.experts.{e}.{gate,up,down}_proj.weight) or fused (mlp.experts.gate_up_proj [E, 2I, H],
// mlp.experts.down_proj [E, H, I]), one way per layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/tensor/tensor_view.h"

namespace banyan {

// Element types accepted for weights today.
inline constexpr DType kWeightDTypes[] = {DType::kBF16, DType::kF32};

struct TensorSpec {
  std::string name;
  Shape shape;
};

enum class ExpertNaming : uint8_t { kNone, kPerExpert, kFused };  // kNone: a dense layer

// Everything that is not a routed expert, in order of use. Without lm_head.weight when the word
// embeddings are tied.
std::vector<TensorSpec> TrunkTensors(const ModelConfig& config);

// The routed experts of one MoE layer under one naming.
std::vector<TensorSpec> RoutedExpertTensors(const ModelConfig& config, int32_t layer,
                                            ExpertNaming naming);

// What CheckComplete found.
struct CheckpointSummary {
  int64_t num_trunk_tensors = 0;
  int64_t trunk_bytes = 0;
  int64_t num_expert_tensors = 0;
  int64_t expert_bytes = 0;
  // Recognised and not used: mtp.* (multi-token prediction), and lm_head.weight beside tied word
  // embeddings.
  int64_t num_mtp_tensors = 0;
  int64_t mtp_bytes = 0;
  int64_t num_unused_tensors = 0;
  int64_t unused_bytes = 0;
  std::vector<ExpertNaming> expert_naming;  // [num_hidden_layers]
};

// Every tensor the model needs is there with its shape and a supported dtype, and no tensor is left
// over. One message lists all problems by kind, the first ten of a kind by name.
// kFailedPrecondition: tensors missing, unknown or of another shape, or a layer that mixes
// per-expert and fused names; kUnimplemented: nothing but dtypes is wrong.
absl::StatusOr<CheckpointSummary> CheckComplete(const Checkpoint& checkpoint,
                                                const ModelConfig& config);

// Weights of one routed expert, I = moe_intermediate_size, H = hidden_size.
struct ExpertTensors {
  TensorView gate_proj;  // [I, H]
  TensorView up_proj;    // [I, H]
  TensorView down_proj;  // [H, I]
};

// Whichever naming the layer uses; slices of fused tensors are views into them. Looks the names up
// each time: meant for loading. kNotFound, kDataLoss as Checkpoint::Get; kInvalidArgument for a
// layer or expert out of range or a dense layer.
absl::StatusOr<ExpertTensors> GetExpertTensors(const Checkpoint& checkpoint,
                                               const ModelConfig& config, int32_t layer,
                                               int32_t expert);

}  // namespace banyan
