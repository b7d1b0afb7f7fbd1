// The trunk's tensors, ready for the operations. Matrices of bf16 and f32 stay where the checkpoint
// has them, others are where a trunk pack has them or are decoded (decoded_matrix.h); small vectors
// are widened to f32, which is exact. A device that shares the model has its slices
// (common/plan/tensor_parallel.h); those that do not lie in one piece are copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/io/trunk_pack.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/tensor_parallel.h"
#include "common/plan/trunk_format.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// Packed as in the checkpoint: model spec 2.5.
struct LinearAttentionWeights {
  Matrix in_proj_qkvz;
  Matrix in_proj_ba;
  Matrix out_proj;
  const float* conv = nullptr;            // [taps, conv_dim]: the checkpoint's, transposed
  const float* neg_decay_rate = nullptr;  // -exp(A_log) [value heads]
  const float* dt_bias = nullptr;
  const float* norm = nullptr;  // [value_head_dim], plain
};

struct FullAttentionWeights {
  Matrix q_proj;  // per head: query rows, then gate rows
  Matrix k_proj;
  Matrix v_proj;
  Matrix o_proj;
  const float* q_norm = nullptr;  // zero-centred
  const float* k_norm = nullptr;
};

struct FfnWeights {
  Matrix gate_proj;
  Matrix up_proj;
  Matrix down_proj;
};

struct MoeWeights {
  Matrix router;              // [num_experts, hidden_size]
  Matrix shared_expert_gate;  // [1, hidden_size]
  FfnWeights shared_expert;
};

struct LayerWeights {
  const float* input_norm = nullptr;           // zero-centred
  const float* post_attention_norm = nullptr;  // zero-centred
  std::variant<LinearAttentionWeights, FullAttentionWeights> mixer;
  std::variant<MoeWeights, FfnWeights> mlp;  // FfnWeights: a dense layer
};

struct TrunkWeights {
  Matrix embed_tokens;
  std::vector<LayerWeights> layers;
  const float* final_norm = nullptr;
  Matrix lm_head;  // embed_tokens when the word embeddings are tied
  // Matrices that were decoded or sliced, where the backend reads host memory.
  std::vector<std::unique_ptr<std::byte[]>> copies;
};

// Where converted matrices come from; borrowed.
struct TrunkSources {
  // Of the whole model, of which a device takes its slices. Outlives the weights. Without one, and
  // for what it does not have, matrices are converted here.
  const TrunkPack* pack = nullptr;
  WorkerPool* pool = nullptr;  // threads to convert with; none: the caller's
};

using banyan::TrunkFormat;  // NOLINT(misc-unused-using-decls): part of this interface

// `config` is the whole model's. `checkpoint` and `backend` outlive the weights. Errors of
// Checkpoint::Get, FindStoredMatrix and DecodeMatrix: they name tensor, file, expected and found.
absl::StatusOr<TrunkWeights> LoadTrunkWeights(const Checkpoint& checkpoint,
                                              const ModelConfig& config, TrunkFormat format,
                                              const TensorRank& rank, const TrunkSources& sources,
                                              Backend* backend);

// Bytes of one row of a matrix, and of all matrices of a layer: what one step reads of it, as
// stored. The vectors (norms, convolution, decay) are left out: below 0.2 % of the matrices
// in the full-size model.
uint64_t RowBytes(const Matrix& matrix);
uint64_t LayerWeightBytes(const LayerWeights& layer);

}  // namespace banyan::trunk
