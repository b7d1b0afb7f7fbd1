// Which tensors a model needs, and whether a checkpoint has exactly these.
// Names and shapes: model spec section 2. Experts come per expert
// (mlp.experts.{e}.{gate,up,down}_proj.weight) or fused (mlp.experts.gate_up_proj [E, 2I, H],
// mlp.experts.down_proj [E, H, I]), one way per layer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/config/stored_matrix.h"
#include "common/io/checkpoint.h"

namespace banyan {

// What a tensor is for; the rows of a plan.
enum class TensorClass : uint8_t {
  kEmbeddings,
  kHead,
  kLinearAttention,
  kFullAttention,
  kRouter,  // and the shared expert's gate
  kSharedExpert,
  kDenseMlp,
  kNorms,  // of layers and the last one
  kRoutedExperts,
  kMtp,     // multi-token prediction: recognised, not used
  kUnused,  // lm_head.weight beside tied word embeddings
};
std::string_view TensorClassName(TensorClass tensor_class);

struct TensorSpec {
  std::string name;
  Shape shape;  // of the model; two dimensions: a matrix, which may be quantised
  TensorClass tensor_class = TensorClass::kNorms;
};

enum class ExpertNaming : uint8_t { kNone, kPerExpert, kFused };  // kNone: a dense layer

// Everything that is not a routed expert, in order of use. Without lm_head.weight when the word
// embeddings are tied.
std::vector<TensorSpec> TrunkTensors(const ModelConfig& config);

// The routed experts of one MoE layer under one naming.
std::vector<TensorSpec> RoutedExpertTensors(const ModelConfig& config, int32_t layer,
                                            ExpertNaming naming);

// All tensors of one class in one format.
struct TensorClassSummary {
  TensorClass tensor_class = TensorClass::kNorms;
  StoredFormat format = StoredFormat::kBF16;  // kMtp and kUnused: kBF16 whatever they are
  int64_t num_weights = 0;                    // tensors that the model names
  int64_t num_companions = 0;                 // of quantised ones: scales and so on
  int64_t stored_bytes = 0;                   // in the files, with companions
  // In the trunk's memory: matrices in ResidentDType, everything else in f32. 0 for routed experts,
  // which the pool's format decides, and for what is not used.
  int64_t resident_bytes = 0;
  // Of the resident bytes those that are not where the checkpoint is mapped, even on a CPU.
  int64_t decoded_bytes = 0;
};

// What CheckComplete found. Tensors count with their companions.
struct CheckpointSummary {
  int64_t num_trunk_tensors = 0;
  int64_t trunk_bytes = 0;  // stored
  int64_t trunk_resident_bytes = 0;
  int64_t num_expert_tensors = 0;
  int64_t expert_bytes = 0;
  // Recognised and not used: mtp.* (multi-token prediction), and lm_head.weight beside tied word
  // embeddings.
  int64_t num_mtp_tensors = 0;
  int64_t mtp_bytes = 0;
  int64_t num_unused_tensors = 0;
  int64_t unused_bytes = 0;
  std::vector<ExpertNaming> expert_naming;  // [num_hidden_layers]
  std::vector<TensorClassSummary> classes;  // by class, then format
};

// Every tensor the model needs is there with its shape, in a supported dtype or quantised format
// with its companions, and no tensor is left over; what config.json says of quantisation is true.
// Reads headers, and the quant_state of 4-bit matrices of the trunk; experts' are read with the
// experts. One message lists all problems by kind, the first ten of a kind by name.
// kFailedPrecondition: tensors missing, unknown or of another shape, a layer that mixes per-expert
// and fused names, a quantization_config that the tensors contradict; kUnimplemented: nothing but
// dtypes and formats is wrong.
absl::StatusOr<CheckpointSummary> CheckComplete(const Checkpoint& checkpoint,
                                                const ModelConfig& config);

// How the trunk holds a matrix that dequantises to `dtype`: bf16 as bf16, f16 and f32 as f32, which
// is exact.
constexpr DType ResidentDType(DType dtype) {
  return dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

// Weights of one routed expert, I = moe_intermediate_size, H = hidden_size.
struct ExpertTensors {
  StoredMatrix gate_proj;  // [I, H]
  StoredMatrix up_proj;    // [I, H]
  StoredMatrix down_proj;  // [H, I]
};

// Whichever naming the layer uses; slices of fused tensors are views into them. Looks the names up
// each time: meant for loading. Errors of FindStoredMatrix; kInvalidArgument for a layer or expert
// out of range or a dense layer.
absl::StatusOr<ExpertTensors> GetExpertTensors(const Checkpoint& checkpoint,
                                               const ModelConfig& config, int32_t layer,
                                               int32_t expert);

}  // namespace banyan
