#include "common/config/tensor_inventory.h"

#include <algorithm>
#include <map>
#include <span>
#include <string_view>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/contradictions.h"

namespace banyan {
namespace {

std::string LayerPrefix(int32_t layer) { return fmt::format("model.layers.{}.", layer); }

// Specs of one class.
class Adder {
 public:
  Adder(TensorClass tensor_class, std::vector<TensorSpec>* out)
      : tensor_class_(tensor_class), out_(out) {}
  void operator()(std::string name, Shape shape) const {
    out_->push_back({std::move(name), std::move(shape), tensor_class_});
  }

 private:
  TensorClass tensor_class_;
  std::vector<TensorSpec>* out_;
};

void AddLinearAttention(const ModelConfig& c, const std::string& prefix,
                        std::vector<TensorSpec>* out) {
  const Adder add(TensorClass::kLinearAttention, out);
  const std::string p = prefix + "linear_attn.";
  const int64_t qkvz = 2 * int64_t{c.linear_key_dim()} + 2 * int64_t{c.linear_value_dim()};
  add(p + "in_proj_qkvz.weight", {qkvz, c.hidden_size});
  add(p + "in_proj_ba.weight", {2 * int64_t{c.linear_num_value_heads}, c.hidden_size});
  add(p + "conv1d.weight", {c.linear_conv_dim(), 1, c.linear_conv_kernel_dim});
  add(p + "A_log", {c.linear_num_value_heads});
  add(p + "dt_bias", {c.linear_num_value_heads});
  add(p + "norm.weight", {c.linear_value_head_dim});
  add(p + "out_proj.weight", {c.hidden_size, c.linear_value_dim()});
}

void AddFullAttention(const ModelConfig& c, const std::string& prefix,
                      std::vector<TensorSpec>* out) {
  const Adder add(TensorClass::kFullAttention, out);
  const std::string p = prefix + "self_attn.";
  const int64_t q_dim = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_dim = int64_t{c.num_key_value_heads} * c.head_dim;
  // Per head: head_dim query rows, then head_dim rows of the output gate.
  add(p + "q_proj.weight", {2 * q_dim, c.hidden_size});
  add(p + "k_proj.weight", {kv_dim, c.hidden_size});
  add(p + "v_proj.weight", {kv_dim, c.hidden_size});
  add(p + "q_norm.weight", {c.head_dim});
  add(p + "k_norm.weight", {c.head_dim});
  add(p + "o_proj.weight", {c.hidden_size, q_dim});
}

void AddFfn(const std::string& p, int64_t hidden_size, int64_t width, TensorClass tensor_class,
            std::vector<TensorSpec>* out) {
  const Adder add(tensor_class, out);
  add(p + "gate_proj.weight", {width, hidden_size});
  add(p + "up_proj.weight", {width, hidden_size});
  add(p + "down_proj.weight", {hidden_size, width});
}

// At most ten names, then a count.
struct Problems {
  static constexpr size_t kShown = 10;
  std::vector<std::string> shown;
  int64_t count = 0;

  void Add(std::string text) {
    if (shown.size() < kShown) shown.push_back(std::move(text));
    ++count;
  }
  std::string ToString(std::string_view kind) const {
    std::string text = fmt::format("{} {}: {}", count, kind, shown.front());
    for (size_t i = 1; i < shown.size(); ++i) text += "; " + shown[i];
    if (count > static_cast<int64_t>(kShown)) {
      text += fmt::format("; and {} more", count - static_cast<int64_t>(kShown));
    }
    return text;
  }
};

class CompletenessCheck {
 public:
  CompletenessCheck(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config), needed_(checkpoint.entries().size(), false) {}

  absl::StatusOr<CheckpointSummary> Run() {
    for (const TensorSpec& spec : TrunkTensors(config_)) {
      Require(spec, &summary_.num_trunk_tensors, &summary_.trunk_bytes);
    }
    for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const ExpertNaming naming = FindNaming(layer);
      summary_.expert_naming.push_back(naming);
      if (naming == ExpertNaming::kNone) continue;
      for (const TensorSpec& spec : RoutedExpertTensors(config_, layer, naming)) {
        Require(spec, &summary_.num_expert_tensors, &summary_.expert_bytes);
      }
    }
    FindLeftOver();
    CompareWithConfig();
    for (const auto& [key, found] : classes_) {
      summary_.trunk_resident_bytes += found.resident_bytes;
      summary_.classes.push_back(found);
    }
    return Conclude();
  }

 private:
  // The first matrix of a format.
  struct Example {
    std::string name;
    std::string file;
  };

  void Require(const TensorSpec& spec, int64_t* count, int64_t* bytes) {
    const absl::StatusOr<StoredMatrix> found = FindStoredMatrix(checkpoint_, spec.name, spec.shape);
    if (!found.ok()) {
      // A tensor that is not as it should be is not unknown as well.
      if (const Checkpoint::Entry* const entry = checkpoint_.Find(spec.name)) MarkNeeded(*entry);
      if (absl::IsUnimplemented(found.status())) MarkModule(spec.name);
      AddProblem(found.status(), &wrong_shape_);
      return;
    }
    MarkNeeded(*found->entry);
    const std::vector<const Checkpoint::Entry*> companions = found->companions();
    for (const Checkpoint::Entry* companion : companions) MarkNeeded(*companion);
    *count += 1 + static_cast<int64_t>(companions.size());
    *bytes += found->stored_bytes();
    TensorClassSummary& row = ClassOf(spec.tensor_class, found->format);
    ++row.num_weights;
    row.num_companions += static_cast<int64_t>(companions.size());
    row.stored_bytes += found->stored_bytes();
    if (spec.tensor_class != TensorClass::kRoutedExperts) CountResident(spec, *found, &row);
    Example& example = examples_[static_cast<size_t>(found->format)];
    if (example.name.empty()) example = {spec.name, checkpoint_.FileOf(*found->entry)};
    if (found->scale != nullptr) {
      Example& scale = scales_[found->double_quantised() ? 1 : 0];
      if (scale.name.empty()) scale = {found->scale->name, checkpoint_.FileOf(*found->scale)};
    }
  }

  void CountResident(const TensorSpec& spec, const StoredMatrix& matrix, TensorClassSummary* row) {
    DType resident = DType::kF32;
    if (spec.shape.rank() == 2) {
      const absl::StatusOr<DType> dtype = DequantizedDType(checkpoint_, matrix);
      if (!dtype.ok()) return AddProblem(dtype.status(), &unreadable_);
      resident = ResidentDType(*dtype);
    }
    const int64_t bytes =
        spec.shape.num_elements() * static_cast<int64_t>(DTypeSizeBytes(resident));
    row->resident_bytes += bytes;
    if (spec.shape.rank() != 2 || matrix.weight.dtype != resident) row->decoded_bytes += bytes;
  }

  void AddProblem(const absl::Status& status, Problems* otherwise) {
    std::string text(ToStd(status.message()));
    if (absl::IsNotFound(status)) return missing_.Add(std::move(text));
    if (absl::IsUnimplemented(status)) return unsupported_.Add(std::move(text));
    otherwise->Add(std::move(text));
  }

  TensorClassSummary& ClassOf(TensorClass tensor_class, StoredFormat format) {
    TensorClassSummary& row = classes_[{tensor_class, format}];
    row.tensor_class = tensor_class;
    row.format = format;
    return row;
  }

  size_t IndexOf(const Checkpoint::Entry& entry) const {
    return static_cast<size_t>(&entry - checkpoint_.entries().data());
  }
  void MarkNeeded(const Checkpoint::Entry& entry) { needed_[IndexOf(entry)] = true; }

  // Whatever a format that is not supported has beside a weight, or instead of it.
  void MarkModule(std::string_view weight) {
    constexpr std::string_view kWeight = "weight";
    if (!weight.ends_with(kWeight)) return;
    for (const Checkpoint::Entry& entry :
         WithPrefix(weight.substr(0, weight.size() - kWeight.size()))) {
      MarkNeeded(entry);
    }
  }

  // Entries whose name begins with PREFIX; entries are in name order.
  std::span<const Checkpoint::Entry> WithPrefix(std::string_view prefix) const {
    const std::span<const Checkpoint::Entry> all = checkpoint_.entries();
    const auto begin = std::lower_bound(all.begin(), all.end(), prefix,
                                        [](const Checkpoint::Entry& entry, std::string_view key) {
                                          return std::string_view(entry.name) < key;
                                        });
    const auto end = std::find_if_not(begin, all.end(), [&](const Checkpoint::Entry& entry) {
      return std::string_view(entry.name).substr(0, prefix.size()) == prefix;
    });
    return all.subspan(static_cast<size_t>(begin - all.begin()), static_cast<size_t>(end - begin));
  }

  // What the names under mlp.experts. say; per expert where there are none. A layer with both kinds
  // counts as the kind of its first tensor, and is reported.
  ExpertNaming FindNaming(int32_t layer) {
    if (config_.mlps[static_cast<size_t>(layer)] == MlpKind::kDense) return ExpertNaming::kNone;
    const std::string prefix = LayerPrefix(layer) + "mlp.experts.";
    const Checkpoint::Entry* per_expert = nullptr;
    const Checkpoint::Entry* fused = nullptr;
    for (const Checkpoint::Entry& entry : WithPrefix(prefix)) {
      const std::string_view rest = std::string_view(entry.name).substr(prefix.size());
      if (rest == "gate_up_proj" || rest == "down_proj") {
        fused = &entry;
      } else if (!rest.empty() && rest.front() >= '0' && rest.front() <= '9') {
        per_expert = &entry;
      }
    }
    if (fused == nullptr) return ExpertNaming::kPerExpert;
    if (per_expert != nullptr) {
      mixed_.Add(fmt::format("layer {} has {} ({}) and {} ({})", layer, fused->name,
                             checkpoint_.FileOf(*fused), per_expert->name,
                             checkpoint_.FileOf(*per_expert)));
    }
    return ExpertNaming::kFused;
  }

  void FindLeftOver() {
    for (const Checkpoint::Entry& entry : checkpoint_.entries()) {
      if (needed_[IndexOf(entry)]) continue;
      const auto bytes = static_cast<int64_t>(entry.view.size_bytes());
      const bool mtp = entry.name.starts_with("mtp.");
      if (mtp || (config_.tie_word_embeddings && entry.name == "lm_head.weight")) {
        ++(mtp ? summary_.num_mtp_tensors : summary_.num_unused_tensors);
        (mtp ? summary_.mtp_bytes : summary_.unused_bytes) += bytes;
        TensorClassSummary& row =
            ClassOf(mtp ? TensorClass::kMtp : TensorClass::kUnused, StoredFormat::kBF16);
        ++row.num_weights;
        row.stored_bytes += bytes;
      } else {
        unknown_.Add(fmt::format("{} {} {} ({})", Printable(entry.name),
                                 DTypeName(entry.view.dtype), entry.view.shape.ToString(),
                                 checkpoint_.FileOf(entry)));
      }
    }
  }

  // quantization_config against the formats that were found.
  void CompareWithConfig() {
    if (!config_.quantization.has_value()) return;
    const QuantizationConfig& said = *config_.quantization;
    for (int i = 0; i < kNumStoredFormats; ++i) {
      const auto format = static_cast<StoredFormat>(i);
      const Example& example = examples_[static_cast<size_t>(i)];
      if (IsPlain(format) || example.name.empty() || format == said.format) continue;
      contradictions_.Add(fmt::format("{}, but {} is {} ({})", said.text, example.name,
                                      StoredFormatName(format), example.file));
    }
    const Example& same = examples_[static_cast<size_t>(said.format)];
    if (same.name.empty() && contradictions_.count == 0 && missing_.count == 0 &&
        unsupported_.count == 0) {
      contradictions_.Add(
          fmt::format("{}, but no tensor is {}", said.text, StoredFormatName(said.format)));
    }
    if (said.double_quant.has_value() && !same.name.empty()) {
      const Example& other = scales_[*said.double_quant ? 0 : 1];
      if (!other.name.empty()) {
        contradictions_.Add(fmt::format("{}, bnb_4bit_use_double_quant {}, but {} is {} ({})",
                                        said.text, *said.double_quant, other.name,
                                        *said.double_quant ? "F32" : "quantised", other.file));
      }
    }
  }

  absl::StatusOr<CheckpointSummary> Conclude() {
    const std::pair<const Problems*, std::string_view> kinds[] = {
        {&unsupported_, "tensor(s) of an unsupported dtype or format"},
        {&mixed_, "layer(s) with fused and per-expert tensors"},
        {&missing_, "tensor(s) missing"},
        {&wrong_shape_, "tensor(s) of another shape"},
        {&unreadable_, "quantised matrix(es) that contradict themselves"},
        {&unknown_, "unknown tensor(s)"},
        {&contradictions_, "contradiction(s)"}};
    std::string text;
    bool only_unsupported = true;
    for (const auto& [problems, kind] : kinds) {
      if (problems->count == 0) continue;
      if (problems != &unsupported_) only_unsupported = false;
      text += (text.empty() ? "" : " | ") + problems->ToString(kind);
    }
    if (text.empty()) return std::move(summary_);
    // One reason explains them all.
    if (const std::string reason = FindContradictions(checkpoint_, config_); !reason.empty()) {
      return FailedPreconditionF("{}: config.json and the tensors contradict each other: {}",
                                 checkpoint_.directory(), reason);
    }
    return StatusF(
        only_unsupported ? absl::StatusCode::kUnimplemented : absl::StatusCode::kFailedPrecondition,
        "{}: checkpoint and config.json disagree: {}", checkpoint_.directory(), text);
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  CheckpointSummary summary_;
  std::vector<bool> needed_;  // by entry
  std::map<std::pair<TensorClass, StoredFormat>, TensorClassSummary> classes_;
  Example examples_[kNumStoredFormats];
  Example scales_[2];  // of 4-bit matrices: as they are, quantised
  Problems missing_, unknown_, wrong_shape_, unreadable_, unsupported_, contradictions_, mixed_;
};

// Slice [slice, first_row .. first_row + num_rows) of a fused [E, rows, columns] tensor.
StoredMatrix SliceOf(const StoredMatrix& fused, const Shape& shape, int64_t slice,
                     int64_t first_row, int64_t num_rows) {
  StoredMatrix out = fused;
  out.rows = num_rows;
  out.cols = shape.dim(2);
  const auto element = static_cast<size_t>((slice * shape.dim(1) + first_row) * out.cols);
  out.weight = {fused.weight.dtype, Shape{num_rows, out.cols},
                fused.weight.data + element * DTypeSizeBytes(fused.weight.dtype)};
  return out;
}

}  // namespace

std::string_view TensorClassName(TensorClass tensor_class) {
  constexpr std::string_view kNames[] = {"embeddings",
                                         "lm_head",
                                         "linear attention",
                                         "full attention",
                                         "router",
                                         "shared expert",
                                         "dense mlp",
                                         "norms",
                                         "routed experts",
                                         "mtp",
                                         "unused"};
  return kNames[static_cast<size_t>(tensor_class)];
}

std::vector<TensorSpec> TrunkTensors(const ModelConfig& config) {
  std::vector<TensorSpec> out;
  const int64_t hidden = config.hidden_size;
  out.push_back(
      {"model.embed_tokens.weight", {config.vocab_size, hidden}, TensorClass::kEmbeddings});
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto i = static_cast<size_t>(layer);
    const std::string prefix = LayerPrefix(layer);
    out.push_back({prefix + "input_layernorm.weight", {hidden}});
    if (config.mixers[i] == MixerKind::kLinearAttention) {
      AddLinearAttention(config, prefix, &out);
    } else {
      AddFullAttention(config, prefix, &out);
    }
    out.push_back({prefix + "post_attention_layernorm.weight", {hidden}});
    if (config.mlps[i] == MlpKind::kDense) {
      AddFfn(prefix + "mlp.", hidden, config.intermediate_size, TensorClass::kDenseMlp, &out);
      continue;
    }
    out.push_back({prefix + "mlp.gate.weight", {config.num_experts, hidden}, TensorClass::kRouter});
    AddFfn(prefix + "mlp.shared_expert.", hidden, config.shared_expert_intermediate_size,
           TensorClass::kSharedExpert, &out);
    out.push_back({prefix + "mlp.shared_expert_gate.weight", {1, hidden}, TensorClass::kRouter});
  }
  out.push_back({"model.norm.weight", {hidden}});
  if (!config.tie_word_embeddings) {
    out.push_back({"lm_head.weight", {config.vocab_size, hidden}, TensorClass::kHead});
  }
  return out;
}

std::vector<TensorSpec> RoutedExpertTensors(const ModelConfig& config, int32_t layer,
                                            ExpertNaming naming) {
  CHECK(naming != ExpertNaming::kNone);
  std::vector<TensorSpec> out;
  const std::string prefix = LayerPrefix(layer) + "mlp.experts.";
  const int64_t width = config.moe_intermediate_size;
  if (naming == ExpertNaming::kFused) {
    out.push_back({prefix + "gate_up_proj",
                   {config.num_experts, 2 * width, config.hidden_size},
                   TensorClass::kRoutedExperts});
    out.push_back({prefix + "down_proj",
                   {config.num_experts, config.hidden_size, width},
                   TensorClass::kRoutedExperts});
    return out;
  }
  out.reserve(3 * static_cast<size_t>(config.num_experts));
  for (int32_t expert = 0; expert < config.num_experts; ++expert) {
    AddFfn(fmt::format("{}{}.", prefix, expert), config.hidden_size, width,
           TensorClass::kRoutedExperts, &out);
  }
  return out;
}

absl::StatusOr<CheckpointSummary> CheckComplete(const Checkpoint& checkpoint,
                                                const ModelConfig& config) {
  return CompletenessCheck(checkpoint, config).Run();
}

absl::StatusOr<ExpertTensors> GetExpertTensors(const Checkpoint& checkpoint,
                                               const ModelConfig& config, int32_t layer,
                                               int32_t expert) {
  if (layer < 0 || layer >= config.num_hidden_layers || expert < 0 ||
      expert >= config.num_experts) {
    return InvalidArgumentF("layer {} expert {}: the model has {} layers of {} experts", layer,
                            expert, config.num_hidden_layers, config.num_experts);
  }
  if (config.mlps[static_cast<size_t>(layer)] != MlpKind::kMoe) {
    return InvalidArgumentF("layer {} expert {}: the layer is dense", layer, expert);
  }
  const int64_t hidden = config.hidden_size;
  const int64_t width = config.moe_intermediate_size;
  const std::string prefix = LayerPrefix(layer) + "mlp.experts.";
  ExpertTensors out;
  if (checkpoint.Find(prefix + "gate_up_proj") != nullptr) {
    const Shape gate_up_shape{config.num_experts, 2 * width, hidden};
    const Shape down_shape{config.num_experts, hidden, width};
    ASSIGN_OR_RETURN(const StoredMatrix gate_up,
                     FindStoredMatrix(checkpoint, prefix + "gate_up_proj", gate_up_shape));
    ASSIGN_OR_RETURN(const StoredMatrix down,
                     FindStoredMatrix(checkpoint, prefix + "down_proj", down_shape));
    out.gate_proj = SliceOf(gate_up, gate_up_shape, expert, 0, width);
    out.up_proj = SliceOf(gate_up, gate_up_shape, expert, width, width);
    out.down_proj = SliceOf(down, down_shape, expert, 0, hidden);
    return out;
  }
  const std::string p = fmt::format("{}{}.", prefix, expert);
  ASSIGN_OR_RETURN(out.gate_proj,
                   FindStoredMatrix(checkpoint, p + "gate_proj.weight", {width, hidden}));
  ASSIGN_OR_RETURN(out.up_proj,
                   FindStoredMatrix(checkpoint, p + "up_proj.weight", {width, hidden}));
  ASSIGN_OR_RETURN(out.down_proj,
                   FindStoredMatrix(checkpoint, p + "down_proj.weight", {hidden, width}));
  return out;
}

}  // namespace banyan
