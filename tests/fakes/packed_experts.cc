#include "tests/fakes/packed_experts.h"

#include <utility>

#include "common/base/check.h"
#include "common/config/stored_matrix.h"
#include "common/config/tensor_inventory.h"
#include "common/quant/packed_expert.h"
#include "common/quant/packed_matrix.h"

namespace banyan::test {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr int32_t kSlices = 2;

std::vector<float> Values(const Checkpoint& checkpoint, const StoredMatrix& matrix) {
  const auto decoder = MatrixDecoder::Create(checkpoint, matrix);
  CHECK(decoder.ok());
  std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
  decoder->DecodeRows(0, matrix.rows, matrix.weight.data, values.data());
  return values;
}

}  // namespace

PackedExperts PackExperts(const Checkpoint& checkpoint, const ModelConfig& config,
                          PoolFormat format) {
  const int64_t hidden = config.hidden_size;
  const int64_t width = config.moe_intermediate_size / kSlices;
  CHECK(config.moe_intermediate_size == width * kSlices && width % PoolFormatGroup(format) == 0);
  const PackedExpertLayout layout = PackedExpertLayoutOf(format, hidden, width);
  const auto layer_bytes = static_cast<size_t>(layout.bytes * config.num_experts);

  PackedExperts out;
  out.pool.format = format;
  out.pool.width = static_cast<int32_t>(width);
  out.pool.expert_bytes = layout.bytes;
  for (int32_t slice = 0; slice < kSlices; ++slice) {
    trunk::PromptExpertPool::Slice packed = {
        .first_expert = 0, .num_experts = config.num_experts, .layers = {}};
    for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      packed.layers.push_back(nullptr);
      if (config.mlps[static_cast<size_t>(layer)] != MlpKind::kMoe) continue;
      std::byte* const memory = static_cast<std::byte*>(
          std::aligned_alloc(kPageBytes, (layer_bytes + kPageBytes - 1) / kPageBytes * kPageBytes));
      out.memory.emplace_back(memory);
      out.layers.emplace_back(memory, layer_bytes);
      packed.layers.back() = memory;
      for (int32_t expert = 0; expert < config.num_experts; ++expert) {
        const auto tensors = GetExpertTensors(checkpoint, config, layer, expert);
        CHECK(tensors.ok());
        std::byte* const to = memory + expert * layout.bytes;
        for (const auto& [matrix, offset] : {std::pair(&tensors->gate_proj, layout.gate_offset),
                                             std::pair(&tensors->up_proj, layout.up_offset)}) {
          const std::vector<float> values = Values(checkpoint, *matrix);
          PackMatrix(format, {values.data() + slice * width * hidden, width, hidden, hidden},
                     to + offset);
        }
        const std::vector<float> down = Values(checkpoint, tensors->down_proj);
        PackMatrix(format, {down.data() + slice * width, hidden, width, kSlices * width},
                   to + layout.down_offset);
      }
    }
    out.pool.slices.push_back(std::move(packed));
  }
  return out;
}

}  // namespace banyan::test
