#include "common/pool/generated_expert.h"

#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/config/tensor_inventory.h"
#include "common/pool/generated_matrix.h"

namespace banyan {

bool IsGeneratedPool(const Checkpoint& checkpoint, PoolFormat format) {
  return checkpoint.is_generated() && format != PoolFormat::kBF16;
}

absl::Status GenerateExpert(const Checkpoint& checkpoint, const ModelConfig& config,
                            const ExpertPackHeader& header, int64_t idx, std::byte* out) {
  const ExpertPackLayout layout = LayoutOf(header);
  const int32_t layer = header.moe_layers[static_cast<size_t>(idx / header.num_shard_experts)];
  const auto expert = static_cast<int32_t>(header.first_expert + idx % header.num_shard_experts);
  ASSIGN_OR_RETURN(const ExpertTensors tensors,
                   GetExpertTensors(checkpoint, config, layer, expert));
  const int64_t first = header.first_width;
  const int64_t width = header.num_shard_width;
  const int64_t hidden = header.hidden_size;
  const MatrixSlice wide = {hidden, first, width, 0, hidden};
  const MatrixSlice tall = {header.moe_intermediate_size, 0, hidden, first, width};
  // Rounding up to whole lines leaves bytes that no matrix writes.
  std::memset(out + layout.gate_bytes - 64, 0, 64);
  std::memset(out + 2 * layout.gate_bytes - 64, 0, 64);
  std::memset(out + layout.expert_bytes - 64, 0, 64);
  const std::pair<const TensorView*, const MatrixSlice*> matrices[] = {
      {&tensors.gate_proj.weight, &wide},
      {&tensors.up_proj.weight, &wide},
      {&tensors.down_proj.weight, &tall}};
  std::byte* at = out;
  for (const auto& [tensor, slice] : matrices) {
    const std::optional<Checkpoint::Generator> generator = checkpoint.GeneratorOf(*tensor);
    CHECK(generator && generator->mean == 0);
    GeneratePackedMatrix(header.format, generator->seed, generator->deviation, *slice, at);
    at += layout.gate_bytes;
  }
  return absl::OkStatus();
}

}  // namespace banyan
