#include "common/config/tensor_inventory.h"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/contradictions.h"

namespace banyan {
namespace {

std::string LayerPrefix(int32_t layer) { return fmt::format("model.layers.{}.", layer); }

void AddLinearAttention(const ModelConfig& c, const std::string& prefix,
                        std::vector<TensorSpec>* out) {
  const std::string p = prefix + "linear_attn.";
  const int64_t qkvz = 2 * int64_t{c.linear_key_dim()} + 2 * int64_t{c.linear_value_dim()};
  out->push_back({p + "in_proj_qkvz.weight", {qkvz, c.hidden_size}});
  out->push_back({p + "in_proj_ba.weight", {2 * int64_t{c.linear_num_value_heads}, c.hidden_size}});
  out->push_back({p + "conv1d.weight", {c.linear_conv_dim(), 1, c.linear_conv_kernel_dim}});
  out->push_back({p + "A_log", {c.linear_num_value_heads}});
  out->push_back({p + "dt_bias", {c.linear_num_value_heads}});
  out->push_back({p + "norm.weight", {c.linear_value_head_dim}});
  out->push_back({p + "out_proj.weight", {c.hidden_size, c.linear_value_dim()}});
}

void AddFullAttention(const ModelConfig& c, const std::string& prefix,
                      std::vector<TensorSpec>* out) {
  const std::string p = prefix + "self_attn.";
  const int64_t q_dim = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_dim = int64_t{c.num_key_value_heads} * c.head_dim;
  // Per head: head_dim query rows, then head_dim rows of the output gate.
  out->push_back({p + "q_proj.weight", {2 * q_dim, c.hidden_size}});
  out->push_back({p + "k_proj.weight", {kv_dim, c.hidden_size}});
  out->push_back({p + "v_proj.weight", {kv_dim, c.hidden_size}});
  out->push_back({p + "q_norm.weight", {c.head_dim}});
  out->push_back({p + "k_norm.weight", {c.head_dim}});
  out->push_back({p + "o_proj.weight", {c.hidden_size, q_dim}});
}

void AddFfn(const std::string& p, int64_t hidden_size, int64_t width,
            std::vector<TensorSpec>* out) {
  out->push_back({p + "gate_proj.weight", {width, hidden_size}});
  out->push_back({p + "up_proj.weight", {width, hidden_size}});
  out->push_back({p + "down_proj.weight", {hidden_size, width}});
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
      : checkpoint_(checkpoint), config_(config) {}

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
    return Conclude();
  }

 private:
  void Require(const TensorSpec& spec, int64_t* count, int64_t* bytes) {
    const Checkpoint::Entry* const entry = checkpoint_.Find(spec.name);
    if (entry == nullptr) {
      missing_.Add(fmt::format("{} {}", spec.name, spec.shape.ToString()));
      return;
    }
    needed_.insert(ToAbsl(entry->name));
    ++*count;
    *bytes += static_cast<int64_t>(entry->view.size_bytes());
    if (entry->view.shape != spec.shape) {
      wrong_shape_.Add(fmt::format("{}: shape {}, expected {} ({})", spec.name,
                                   entry->view.shape.ToString(), spec.shape.ToString(),
                                   checkpoint_.FileOf(*entry)));
    }
    if (std::find(std::begin(kWeightDTypes), std::end(kWeightDTypes), entry->view.dtype) ==
        std::end(kWeightDTypes)) {
      wrong_dtype_.Add(fmt::format("{}: dtype {}, expected BF16 or F32 ({})", spec.name,
                                   DTypeName(entry->view.dtype), checkpoint_.FileOf(*entry)));
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
      if (needed_.contains(ToAbsl(entry.name))) continue;
      const auto bytes = static_cast<int64_t>(entry.view.size_bytes());
      if (entry.name.rfind("mtp.", 0) == 0) {
        ++summary_.num_mtp_tensors;
        summary_.mtp_bytes += bytes;
      } else if (config_.tie_word_embeddings && entry.name == "lm_head.weight") {
        ++summary_.num_unused_tensors;
        summary_.unused_bytes += bytes;
      } else {
        unknown_.Add(fmt::format("{} {} {} ({})", Printable(entry.name),
                                 DTypeName(entry.view.dtype), entry.view.shape.ToString(),
                                 checkpoint_.FileOf(entry)));
      }
    }
  }

  absl::StatusOr<CheckpointSummary> Conclude() {
    const std::pair<const Problems*, std::string_view> kinds[] = {
        {&mixed_, "layer(s) with fused and per-expert tensors"},
        {&missing_, "tensor(s) missing"},
        {&wrong_shape_, "tensor(s) of another shape"},
        {&unknown_, "unknown tensor(s)"},
        {&wrong_dtype_, "tensor(s) of an unsupported dtype"}};
    std::string text;
    bool only_dtype = true;
    for (const auto& [problems, kind] : kinds) {
      if (problems->count == 0) continue;
      if (problems != &wrong_dtype_) only_dtype = false;
      text += (text.empty() ? "" : " | ") + problems->ToString(kind);
    }
    if (text.empty()) return std::move(summary_);
    // One reason explains them all.
    if (const std::string reason = FindContradictions(checkpoint_, config_); !reason.empty()) {
      return FailedPreconditionF("{}: config.json and the tensors contradict each other: {}",
                                 checkpoint_.directory(), reason);
    }
    return StatusF(
        only_dtype ? absl::StatusCode::kUnimplemented : absl::StatusCode::kFailedPrecondition,
        "{}: checkpoint and config.json disagree: {}", checkpoint_.directory(), text);
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  CheckpointSummary summary_;
  absl::flat_hash_set<absl::string_view> needed_;
  Problems missing_, unknown_, wrong_shape_, wrong_dtype_, mixed_;
};

// Slice [slice, first_row .. first_row + num_rows) of a fused [E, rows, columns] tensor.
TensorView SliceOf(const TensorView& fused, int64_t slice, int64_t first_row, int64_t num_rows) {
  const int64_t rows = fused.shape.dim(1);
  const int64_t columns = fused.shape.dim(2);
  const auto element = static_cast<size_t>((slice * rows + first_row) * columns);
  return {fused.dtype, Shape{num_rows, columns},
          fused.data + element * DTypeSizeBytes(fused.dtype)};
}

}  // namespace

std::vector<TensorSpec> TrunkTensors(const ModelConfig& config) {
  std::vector<TensorSpec> out;
  const int64_t hidden = config.hidden_size;
  out.push_back({"model.embed_tokens.weight", {config.vocab_size, hidden}});
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
      AddFfn(prefix + "mlp.", hidden, config.intermediate_size, &out);
      continue;
    }
    out.push_back({prefix + "mlp.gate.weight", {config.num_experts, hidden}});
    AddFfn(prefix + "mlp.shared_expert.", hidden, config.shared_expert_intermediate_size, &out);
    out.push_back({prefix + "mlp.shared_expert_gate.weight", {1, hidden}});
  }
  out.push_back({"model.norm.weight", {hidden}});
  if (!config.tie_word_embeddings) {
    out.push_back({"lm_head.weight", {config.vocab_size, hidden}});
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
    out.push_back({prefix + "gate_up_proj", {config.num_experts, 2 * width, config.hidden_size}});
    out.push_back({prefix + "down_proj", {config.num_experts, config.hidden_size, width}});
    return out;
  }
  out.reserve(3 * static_cast<size_t>(config.num_experts));
  for (int32_t expert = 0; expert < config.num_experts; ++expert) {
    AddFfn(fmt::format("{}{}.", prefix, expert), config.hidden_size, width, &out);
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
    ASSIGN_OR_RETURN(const TensorView gate_up,
                     checkpoint.Get(prefix + "gate_up_proj",
                                    {config.num_experts, 2 * width, hidden}, kWeightDTypes));
    ASSIGN_OR_RETURN(
        const TensorView down,
        checkpoint.Get(prefix + "down_proj", {config.num_experts, hidden, width}, kWeightDTypes));
    out.gate_proj = SliceOf(gate_up, expert, 0, width);
    out.up_proj = SliceOf(gate_up, expert, width, width);
    out.down_proj = SliceOf(down, expert, 0, hidden);
    return out;
  }
  const std::string p = fmt::format("{}{}.", prefix, expert);
  ASSIGN_OR_RETURN(out.gate_proj,
                   checkpoint.Get(p + "gate_proj.weight", {width, hidden}, kWeightDTypes));
  ASSIGN_OR_RETURN(out.up_proj,
                   checkpoint.Get(p + "up_proj.weight", {width, hidden}, kWeightDTypes));
  ASSIGN_OR_RETURN(out.down_proj,
                   checkpoint.Get(p + "down_proj.weight", {hidden, width}, kWeightDTypes));
  return out;
}

}  // namespace banyan
