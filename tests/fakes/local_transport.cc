#include "tests/fakes/local_transport.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string_view>
#include <utility>

#include "common/base/check.h"
#include "common/config/stored_matrix.h"
#include "common/config/tensor_inventory.h"
#include "common/quant/bf16.h"
#include "services/trunk/routing/dispatch_plan.h"

namespace banyan::test {
namespace {

std::vector<float> Transposed(const Checkpoint& checkpoint, const StoredMatrix& matrix) {
  const auto decoder = MatrixDecoder::Create(checkpoint, matrix);
  CHECK(decoder.ok());
  const auto rows = static_cast<size_t>(matrix.rows);
  const auto cols = static_cast<size_t>(matrix.cols);
  std::vector<float> values(rows * cols);
  decoder->DecodeRows(0, matrix.rows, matrix.weight.data, values.data());
  std::vector<float> out(rows * cols);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) out[c * rows + r] = values[r * cols + c];
  }
  return out;
}

// y[j] = sum over i of x[i] * w[i, j], i ascending.
void MatVec(const std::vector<float>& w, const float* x, size_t n, std::vector<float>* y) {
  std::fill(y->begin(), y->end(), 0.0f);
  const size_t m = y->size();
  for (size_t i = 0; i < n; ++i) {
    const float* row = w.data() + i * m;
    for (size_t j = 0; j < m; ++j) (*y)[j] += x[i] * row[j];
  }
}

}  // namespace

LocalTransport::LocalTransport(const Checkpoint& checkpoint, const ModelConfig& config)
    : checkpoint_(checkpoint), config_(config) {
  layers_.resize(static_cast<size_t>(config.num_hidden_layers));
  for (auto& layer : layers_) layer.resize(static_cast<size_t>(config.num_experts));
  gate_.resize(static_cast<size_t>(config.moe_intermediate_size));
  up_.resize(gate_.size());
  down_.resize(static_cast<size_t>(config.hidden_size));
  row_.resize(down_.size());
}

LocalTransport::~LocalTransport() = default;

const LocalTransport::Expert& LocalTransport::Load(int32_t layer, int32_t expert) {
  auto& slot = layers_[static_cast<size_t>(layer)][static_cast<size_t>(expert)];
  if (slot == nullptr) {
    const auto tensors = GetExpertTensors(checkpoint_, config_, layer, expert);
    CHECK(tensors.ok());
    slot = std::make_unique<Expert>();
    slot->gate_proj = Transposed(checkpoint_, tensors->gate_proj);
    slot->up_proj = Transposed(checkpoint_, tensors->up_proj);
    slot->down_proj = Transposed(checkpoint_, tensors->down_proj);
  }
  return *slot;
}

void LocalTransport::LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks,
                                    size_t block_bytes) {
  CHECK(lent_.empty());
  lent_ = std::move(blocks);
  lent_bytes_ = block_bytes;
}

std::byte* LocalTransport::TakeRowsMemory() {
  CHECK(under_way_.size() < trunk::kMaxBatchesUnderWay);
  const size_t turn = num_taken_++ % (lent_.size() + 1);
  if (turn == lent_.size()) return nullptr;
  std::byte* const block = lent_[turn].get();
  for (const Sent& sent : under_way_) {
    if (sent.batch.activations == block) return nullptr;
  }
  std::memset(block, 0xff, lent_bytes_);  // NaNs
  return block;
}

uint64_t LocalTransport::ChecksumOf(const Batch& batch, size_t hidden_size) {
  const auto rows = static_cast<size_t>(batch.num_rows);
  const size_t chosen = rows * static_cast<size_t>(batch.top_k);
  const auto hash = [](const void* data, size_t bytes) {
    return std::hash<std::string_view>()({static_cast<const char*>(data), bytes});
  };
  return hash(batch.activations, rows * hidden_size * DTypeSizeBytes(batch.activations_dtype)) ^
         3 * hash(batch.expert_ids, chosen * sizeof(uint16_t)) ^
         5 * hash(batch.weights, chosen * sizeof(float));
}

absl::Status LocalTransport::Dispatch(const Batch& batch) {
  CHECK(under_way_.size() < trunk::kMaxBatchesUnderWay);
  CHECK(batch.layer >= 0 && batch.layer < config_.num_hidden_layers);
  CHECK(batch.top_k == config_.num_experts_per_tok && batch.num_rows > 0);
  CHECK(batch.activations_dtype == DType::kF32 || batch.activations_dtype == DType::kBF16);
  for (int32_t row = 0; row < batch.num_rows; ++row) {
    const uint16_t* ids = batch.expert_ids + row * batch.top_k;
    for (int32_t i = 0; i < batch.top_k; ++i) {
      if (ids[i] == trunk::kOtherShard) continue;
      CHECK(ids[i] < config_.num_experts);
      CHECK(std::find(ids, ids + i, ids[i]) == ids + i);
    }
  }
  calls_.push_back("d" + std::to_string(batch.layer));
  if (!dispatch_failure_.ok() && dispatches_before_failure_-- == 0) {
    return std::exchange(dispatch_failure_, absl::OkStatus());
  }
  under_way_.push_back({batch, ChecksumOf(batch, down_.size())});
  return absl::OkStatus();
}

void LocalTransport::Abandon() {
  calls_.emplace_back("a");
  under_way_.clear();
}

absl::Status LocalTransport::Combine(float* out) {
  CHECK(!under_way_.empty());
  const Batch batch = under_way_.front().batch;
  calls_.push_back("c" + std::to_string(batch.layer));
  for (const Sent& sent : under_way_) CHECK(sent.checksum == ChecksumOf(sent.batch, down_.size()));
  under_way_.pop_front();
  if (!failure_.ok() && combines_before_failure_-- == 0) {
    return std::exchange(failure_, absl::OkStatus());
  }
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  std::fill_n(out, static_cast<size_t>(batch.num_rows) * hidden, 0.0f);
  for (int32_t row = 0; row < batch.num_rows; ++row) {
    const auto r = static_cast<size_t>(row);
    const float* const x = Widen(batch, row);
    for (int32_t i = 0; i < batch.top_k; ++i) {
      const size_t at = r * static_cast<size_t>(batch.top_k) + static_cast<size_t>(i);
      if (batch.expert_ids[at] == trunk::kOtherShard) continue;
      AddExpert(Load(batch.layer, batch.expert_ids[at]), x, batch.weights[at], out + r * hidden);
    }
  }
  return absl::OkStatus();
}

const float* LocalTransport::Widen(const Batch& batch, int32_t row) {
  const size_t first = static_cast<size_t>(row) * row_.size();
  if (batch.activations_dtype == DType::kF32) {
    return static_cast<const float*>(batch.activations) + first;
  }
  const auto* const x = static_cast<const BF16*>(batch.activations) + first;
  std::transform(x, x + row_.size(), row_.begin(), [](BF16 value) { return ToFloat(value); });
  return row_.data();
}

void LocalTransport::AddExpert(const Expert& expert, const float* x, float weight, float* out) {
  MatVec(expert.gate_proj, x, down_.size(), &gate_);
  MatVec(expert.up_proj, x, down_.size(), &up_);
  for (size_t i = 0; i < gate_.size(); ++i) {
    gate_[i] = gate_[i] / (1.0f + std::exp(-gate_[i])) * up_[i];
  }
  MatVec(expert.down_proj, gate_.data(), gate_.size(), &down_);
  for (size_t i = 0; i < down_.size(); ++i) out[i] += weight * down_[i];
}

}  // namespace banyan::test
