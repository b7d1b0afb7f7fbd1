#include "common/pool/own_format.h"

#include <string>
#include <utility>

#include "common/base/status_macros.h"
#include "common/config/stored_matrix.h"

namespace banyan {
namespace {

// The first expert of every layer can be kept in an nf4 pool.
absl::StatusOr<bool> KeepsNF4(const Checkpoint& checkpoint, const ModelConfig& config) {
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.mlps[static_cast<size_t>(layer)] != MlpKind::kMoe) continue;
    ASSIGN_OR_RETURN(ExpertTensors expert, GetExpertTensors(checkpoint, config, layer, 0));
    for (StoredMatrix* matrix : {&expert.gate_proj, &expert.up_proj, &expert.down_proj}) {
      ASSIGN_OR_RETURN(const MatrixDecoder decoder,
                       MatrixDecoder::Create(checkpoint, std::move(*matrix)));
      std::string difference;
      if (!decoder.IsPoolNF4(&difference)) return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<std::optional<PoolFormat>> OwnPoolFormat(const Checkpoint& checkpoint,
                                                        const ModelConfig& config,
                                                        const CheckpointSummary& summary) {
  bool found[kNumStoredFormats] = {};
  int num_found = 0;
  for (const TensorClassSummary& row : summary.classes) {
    if (row.tensor_class != TensorClass::kRoutedExperts) continue;
    found[static_cast<size_t>(row.format)] = true;
    ++num_found;
  }
  const auto has = [&](StoredFormat format) { return found[static_cast<size_t>(format)]; };
  const int num_mapped = (has(StoredFormat::kBF16) ? 1 : 0) + (has(StoredFormat::kF32) ? 1 : 0);
  if (num_found == num_mapped) return std::optional<PoolFormat>();
  if (num_found == 1 && has(StoredFormat::kNF4)) {
    ASSIGN_OR_RETURN(const bool keeps, KeepsNF4(checkpoint, config));
    if (keeps) return std::optional(PoolFormat::kNF4);
  }
  return std::optional(PoolFormat::kBF16);
}

absl::StatusOr<std::optional<RoundedExperts>> FindRoundedExperts(const Checkpoint& checkpoint,
                                                                 const ModelConfig& config) {
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.mlps[static_cast<size_t>(layer)] != MlpKind::kMoe) continue;
    ASSIGN_OR_RETURN(const ExpertTensors expert, GetExpertTensors(checkpoint, config, layer, 0));
    for (const StoredMatrix* matrix : {&expert.gate_proj, &expert.up_proj, &expert.down_proj}) {
      ASSIGN_OR_RETURN(const DType dtype, DequantizedDType(checkpoint, *matrix));
      if (dtype != DType::kBF16) return RoundedExperts{matrix->name, dtype};
    }
  }
  return std::optional<RoundedExperts>();
}

}  // namespace banyan
