#include "services/trunk/model/weights.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/quant/bf16.h"
#include "common/quant/f16.h"
#include "services/trunk/model/decoded_matrix.h"
#include "services/trunk/model/sliced_tensor.h"

namespace banyan::trunk {
namespace {

std::vector<float> WidenToF32(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.shape.num_elements()));
  if (view.dtype == DType::kF32) {
    std::memcpy(values.data(), view.data, view.size_bytes());
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, view.data + i * sizeof(bits), sizeof(bits));
    values[i] = view.dtype == DType::kBF16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits});
  }
  return values;
}

constexpr const char* kEmbedding = "model.embed_tokens.weight";

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, TrunkFormat format,
         const TensorRank& rank, const TrunkSources& sources, Backend* backend)
      : checkpoint_(checkpoint),
        config_(config),
        format_(format),
        rank_(rank),
        sources_(sources),
        backend_(backend) {}

  absl::StatusOr<TrunkWeights> Load() {
    TrunkWeights out;
    const int64_t hidden = config_.hidden_size;
    const auto place = [this](const TensorView& view) {
      return config_.tie_word_embeddings ? backend_->PlaceMatrix(view) : backend_->PlaceTable(view);
    };
    RETURN_IF_ERROR(PlaceWith(kEmbedding, config_.vocab_size, hidden, place, &out.embed_tokens));
    out.embed_tokens.first_row = out.embed_tokens.rows * rank_.rank;
    for (int32_t i = 0; i < config_.num_hidden_layers; ++i) {
      RETURN_IF_ERROR(LoadLayer(i, &out.layers.emplace_back()));
    }
    RETURN_IF_ERROR(Vector("model.norm.weight", {hidden}, &out.final_norm));
    out.lm_head = out.embed_tokens;
    if (!config_.tie_word_embeddings) {
      RETURN_IF_ERROR(Place("lm_head.weight", config_.vocab_size, hidden, &out.lm_head));
    }
    out.copies = std::move(copies_);
    return out;
  }

 private:
  absl::Status LoadLayer(int32_t layer, LayerWeights* out) {
    const std::string p = fmt::format("model.layers.{}.", layer);
    const int64_t hidden = config_.hidden_size;
    RETURN_IF_ERROR(Vector(p + "input_layernorm.weight", {hidden}, &out->input_norm));
    RETURN_IF_ERROR(
        Vector(p + "post_attention_layernorm.weight", {hidden}, &out->post_attention_norm));
    const auto i = static_cast<size_t>(layer);
    if (config_.mixers[i] == MixerKind::kLinearAttention) {
      RETURN_IF_ERROR(
          LoadLinearAttention(p + "linear_attn.", &out->mixer.emplace<LinearAttentionWeights>()));
    } else {
      RETURN_IF_ERROR(
          LoadFullAttention(p + "self_attn.", &out->mixer.emplace<FullAttentionWeights>()));
    }
    if (config_.mlps[i] == MlpKind::kDense) {
      return LoadFfn(p + "mlp.", config_.intermediate_size, &out->mlp.emplace<FfnWeights>());
    }
    auto& moe = out->mlp.emplace<MoeWeights>();
    RETURN_IF_ERROR(Place(p + "mlp.gate.weight", config_.num_experts, hidden, &moe.router));
    RETURN_IF_ERROR(Place(p + "mlp.shared_expert_gate.weight", 1, hidden, &moe.shared_expert_gate));
    return LoadFfn(p + "mlp.shared_expert.", config_.shared_expert_intermediate_size,
                   &moe.shared_expert);
  }

  absl::Status LoadLinearAttention(const std::string& p, LinearAttentionWeights* out) {
    const int64_t hidden = config_.hidden_size;
    const int64_t heads = config_.linear_num_value_heads;
    const int64_t channels = config_.linear_conv_dim();
    const int64_t taps = config_.linear_conv_kernel_dim;
    const int64_t qkvz = channels + config_.linear_value_dim();
    RETURN_IF_ERROR(Place(p + "in_proj_qkvz.weight", qkvz, hidden, &out->in_proj_qkvz));
    RETURN_IF_ERROR(Place(p + "in_proj_ba.weight", 2 * heads, hidden, &out->in_proj_ba));
    RETURN_IF_ERROR(
        Place(p + "out_proj.weight", hidden, config_.linear_value_dim(), &out->out_proj));

    std::vector<float> conv;
    RETURN_IF_ERROR(Read(p + "conv1d.weight", {channels, 1, taps}, &conv));
    std::vector<float> transposed(conv.size());
    const int64_t own = static_cast<int64_t>(conv.size()) / taps;  // channels of this device
    for (int64_t c = 0; c < own; ++c) {
      for (int64_t j = 0; j < taps; ++j) {
        transposed[static_cast<size_t>(j * own + c)] = conv[static_cast<size_t>(c * taps + j)];
      }
    }
    RETURN_IF_ERROR(Take(p + "conv1d.weight", backend_->PlaceVector(transposed), &out->conv));

    std::vector<float> rate;
    RETURN_IF_ERROR(Read(p + "A_log", {heads}, &rate));
    for (float& value : rate) value = -std::exp(value);
    RETURN_IF_ERROR(Take(p + "A_log", backend_->PlaceVector(rate), &out->neg_decay_rate));
    RETURN_IF_ERROR(Vector(p + "dt_bias", {heads}, &out->dt_bias));
    return Vector(p + "norm.weight", {config_.linear_value_head_dim}, &out->norm);
  }

  absl::Status LoadFullAttention(const std::string& p, FullAttentionWeights* out) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_dim = int64_t{config_.num_attention_heads} * config_.head_dim;
    const int64_t kv_dim = int64_t{config_.num_key_value_heads} * config_.head_dim;
    RETURN_IF_ERROR(Place(p + "q_proj.weight", 2 * q_dim, hidden, &out->q_proj));
    RETURN_IF_ERROR(Place(p + "k_proj.weight", kv_dim, hidden, &out->k_proj));
    RETURN_IF_ERROR(Place(p + "v_proj.weight", kv_dim, hidden, &out->v_proj));
    RETURN_IF_ERROR(Place(p + "o_proj.weight", hidden, q_dim, &out->o_proj));
    RETURN_IF_ERROR(Vector(p + "q_norm.weight", {config_.head_dim}, &out->q_norm));
    return Vector(p + "k_norm.weight", {config_.head_dim}, &out->k_norm);
  }

  absl::Status LoadFfn(const std::string& p, int64_t width, FfnWeights* out) {
    const int64_t hidden = config_.hidden_size;
    RETURN_IF_ERROR(Place(p + "gate_proj.weight", width, hidden, &out->gate_proj));
    RETURN_IF_ERROR(Place(p + "up_proj.weight", width, hidden, &out->up_proj));
    return Place(p + "down_proj.weight", hidden, width, &out->down_proj);
  }

  // In the trunk's format.
  absl::Status Place(const std::string& name, int64_t rows, int64_t cols, Matrix* out) {
    const bool codes = format_ == TrunkFormat::kInt8 && !IsKeptAsStored(name);
    const auto place = [this, codes](const TensorView& view) {
      return codes ? backend_->PlaceInt8Matrix(view) : backend_->PlaceMatrix(view);
    };
    return PlaceWith(name, rows, cols, place, out);
  }

  absl::Status PlaceWith(const std::string& name, int64_t rows, int64_t cols,
                         absl::FunctionRef<absl::StatusOr<Matrix>(const TensorView&)> place,
                         Matrix* out) {
    const Shape shape = {rows, cols};
    const TensorSlice slice = SliceOf(name, shape, config_, rank_);
    if (const TrunkPack::Matrix* const packed =
            sources_.pack == nullptr ? nullptr : sources_.pack->Find(name)) {
      CHECK(packed->values.shape == shape);
      if (packed->values.dtype != DType::kI8) {
        return PlaceAndKeep(name, SliceTensor(packed->values, slice), place, out);
      }
      if (std::optional<SlicedCodes> codes = SliceCodes(*packed, slice)) {
        return PlaceCodesAndKeep(name, *std::move(codes), out);
      }
    }
    ASSIGN_OR_RETURN(StoredMatrix stored, FindStoredMatrix(checkpoint_, name, shape));
    if (stored.format == StoredFormat::kBF16 || stored.format == StoredFormat::kF32) {
      return PlaceAndKeep(name, SliceTensor(stored.weight, slice), place, out);
    }
    ASSIGN_OR_RETURN(DecodedMatrix decoded,
                     DecodeMatrix(checkpoint_, std::move(stored), sources_.pool));
    if (rank_.size == 1) {
      return PlaceAndKeep(name, {decoded.view, std::move(decoded.bytes)}, place, out);
    }
    return PlaceAndKeep(name, SliceTensor(decoded.view, slice, /*copy=*/true), place, out);
  }

  // A backend that computes on host memory reads a copy where it is.
  absl::Status PlaceAndKeep(const std::string& name, SlicedTensor tensor,
                            absl::FunctionRef<absl::StatusOr<Matrix>(const TensorView&)> place,
                            Matrix* out) {
    RETURN_IF_ERROR(Take(name, place(tensor.view), out));
    if (tensor.bytes != nullptr && out->data == tensor.view.data) {
      copies_.push_back(std::move(tensor.bytes));
    }
    return absl::OkStatus();
  }

  absl::Status PlaceCodesAndKeep(const std::string& name, SlicedCodes codes, Matrix* out) {
    const TensorView& view = codes.codes.view;
    const auto* const scales = reinterpret_cast<const float*>(codes.scales.view.data);
    const Matrix host = {DType::kI8, static_cast<int32_t>(view.shape.dim(0)),
                         static_cast<int32_t>(view.shape.dim(1)), view.data, scales};
    RETURN_IF_ERROR(Take(name, backend_->PlaceInt8Codes(host), out));
    if (out->data != view.data) return absl::OkStatus();
    for (SlicedTensor* const part : {&codes.codes, &codes.scales}) {
      if (part->bytes != nullptr) copies_.push_back(std::move(part->bytes));
    }
    return absl::OkStatus();
  }

  absl::Status Read(const std::string& name, const Shape& shape, std::vector<float>* out) {
    ASSIGN_OR_RETURN(const TensorView view, checkpoint_.Get(name, shape, kPlainDTypes));
    *out = WidenToF32(SliceTensor(view, SliceOf(name, shape, config_, rank_)).view);
    return absl::OkStatus();
  }

  absl::Status Vector(const std::string& name, const Shape& shape, const float** out) {
    std::vector<float> values;
    RETURN_IF_ERROR(Read(name, shape, &values));
    return Take(name, backend_->PlaceVector(values), out);
  }

  // What there was no room for has a name.
  template <typename T>
  static absl::Status Take(const std::string& name, absl::StatusOr<T> placed, T* out) {
    if (!placed.ok()) return Annotate(placed.status(), name);
    *out = *placed;
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const TrunkFormat format_;
  const TensorRank rank_;
  const TrunkSources sources_;
  Backend* backend_;
  std::vector<std::unique_ptr<std::byte[]>> copies_;
};

}  // namespace

absl::StatusOr<TrunkWeights> LoadTrunkWeights(const Checkpoint& checkpoint,
                                              const ModelConfig& config, TrunkFormat format,
                                              const TensorRank& rank, const TrunkSources& sources,
                                              Backend* backend) {
  return Loader(checkpoint, config, format, rank, sources, backend).Load();
}

uint64_t RowBytes(const Matrix& matrix) {
  const auto cols = static_cast<uint64_t>(matrix.cols);
  if (matrix.dtype != DType::kI8) return cols * DTypeSizeBytes(matrix.dtype);
  return cols + static_cast<uint64_t>(Int8Groups(matrix.cols)) * sizeof(float);
}

uint64_t LayerWeightBytes(const LayerWeights& layer) {
  std::vector<const Matrix*> matrices;
  if (const auto* linear = std::get_if<LinearAttentionWeights>(&layer.mixer)) {
    matrices = {&linear->in_proj_qkvz, &linear->in_proj_ba, &linear->out_proj};
  } else {
    const auto& full = std::get<FullAttentionWeights>(layer.mixer);
    matrices = {&full.q_proj, &full.k_proj, &full.v_proj, &full.o_proj};
  }
  const auto* ffn = std::get_if<FfnWeights>(&layer.mlp);
  if (const auto* moe = std::get_if<MoeWeights>(&layer.mlp)) {
    matrices.insert(matrices.end(), {&moe->router, &moe->shared_expert_gate});
    ffn = &moe->shared_expert;
  }
  matrices.insert(matrices.end(), {&ffn->gate_proj, &ffn->up_proj, &ffn->down_proj});
  uint64_t bytes = 0;
  for (const Matrix* m : matrices) bytes += RowBytes(*m) * static_cast<uint64_t>(m->rows);
  return bytes;
}

}  // namespace banyan::trunk
