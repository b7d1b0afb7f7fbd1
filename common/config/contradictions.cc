#include "common/config/contradictions.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr std::string_view kLayers = "model.layers.";
constexpr std::string_view kExperts = "mlp.experts.";

// The number that `text` begins with, and what follows it.
std::optional<int64_t> TakeNumber(std::string_view* text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  return value;
}

struct Found {
  int64_t value = 0;
  const Checkpoint::Entry* entry = nullptr;  // that shows it
  bool all_alike = true;
};

class Search {
 public:
  Search(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config) {}

  std::string Run() {
    for (const Checkpoint::Entry& entry : checkpoint_.entries()) Look(entry);
    Count("num_hidden_layers", config_.num_hidden_layers, last_layer_, "layers");
    // In a checkpoint of both namings the highest number says nothing.
    if (fused_experts_.entry == nullptr) {
      Count("num_experts", config_.num_experts, last_expert_, "experts");
    }
    Width("num_experts", config_.num_experts, fused_experts_);
    Width("vocab_size", config_.vocab_size, vocab_);
    Width("hidden_size", config_.hidden_size, hidden_);
    Width("moe_intermediate_size", config_.moe_intermediate_size, expert_width_);
    Width("shared_expert_intermediate_size", config_.shared_expert_intermediate_size,
          shared_width_);
    Width("linear_num_value_heads", config_.linear_num_value_heads, value_heads_);
    Width("head_dim", config_.head_dim, head_dim_);
    // Layer kinds say something only where the layers are as many as they should be.
    if (texts_.empty() && mixer_ != nullptr) {
      texts_.push_back(
          fmt::format("layer {} is {} (layer_types, full_attention_interval), but {}", mixer_layer_,
                      mixer_linear_ ? "full_attention" : "linear_attention", Where(*mixer_)));
    }
    std::string out;
    for (const std::string& text : texts_) out += (out.empty() ? "" : "; ") + text;
    return out;
  }

 private:
  // Sizes of quantised tensors are not those of the matrices.
  static bool Plain(const Checkpoint::Entry& entry) {
    return entry.view.dtype == DType::kBF16 || entry.view.dtype == DType::kF16 ||
           entry.view.dtype == DType::kF32;
  }

  std::string Where(const Checkpoint::Entry& entry) const {
    return fmt::format("{} {} is in {}", Printable(entry.name), entry.view.shape.ToString(),
                       checkpoint_.FileOf(entry));
  }

  static void Keep(Found* found, int64_t value, const Checkpoint::Entry& entry) {
    if (found->entry == nullptr || value > found->value) {
      found->value = value;
      found->entry = &entry;
    }
  }
  // Of the first of its kind, and whether the others say the same: one that does not is damaged.
  static void KeepDim(Found* found, const Checkpoint::Entry& entry, int rank, int dim) {
    if (!Plain(entry) || entry.view.shape.rank() != rank) return;
    const int64_t value = entry.view.shape.dim(dim);
    if (found->entry == nullptr) {
      found->value = value;
      found->entry = &entry;
    }
    found->all_alike &= value == found->value;
  }

  void Look(const Checkpoint::Entry& entry) {
    std::string_view name = entry.name;
    if (name == "model.embed_tokens.weight") {
      KeepDim(&vocab_, entry, 2, 0);
      KeepDim(&hidden_, entry, 2, 1);
    }
    if (!name.starts_with(kLayers)) return;
    name.remove_prefix(kLayers.size());
    const std::optional<int64_t> layer = TakeNumber(&name);
    if (!layer || !name.starts_with('.')) return;
    name.remove_prefix(1);
    Keep(&last_layer_, *layer, entry);
    LookAtMixer(*layer, name, entry);
    if (name == "mlp.shared_expert.gate_proj.weight") KeepDim(&shared_width_, entry, 2, 0);
    if (name == "linear_attn.A_log") KeepDim(&value_heads_, entry, 1, 0);
    if (name == "self_attn.q_norm.weight") KeepDim(&head_dim_, entry, 1, 0);
    if (!name.starts_with(kExperts)) return;
    name.remove_prefix(kExperts.size());
    if (name == "down_proj") KeepDim(&fused_experts_, entry, 3, 0);
    if (name == "down_proj") KeepDim(&expert_width_, entry, 3, 2);
    if (const std::optional<int64_t> expert = TakeNumber(&name)) {
      Keep(&last_expert_, *expert, entry);
      if (name == ".gate_proj.weight") KeepDim(&expert_width_, entry, 2, 0);
    }
  }

  void LookAtMixer(int64_t layer, std::string_view name, const Checkpoint::Entry& entry) {
    if (mixer_ != nullptr || layer >= config_.num_hidden_layers) return;
    const bool linear = config_.mixers[static_cast<size_t>(layer)] == MixerKind::kLinearAttention;
    if (!name.starts_with(linear ? "self_attn." : "linear_attn.")) return;
    mixer_ = &entry;
    mixer_layer_ = layer;
    mixer_linear_ = !linear;
  }

  void Count(std::string_view key, int64_t value, const Found& last, std::string_view what) {
    if (last.entry == nullptr || last.value + 1 == value) return;
    texts_.push_back(fmt::format("{} is {}, but the tensors are of {} {} (the last: {}, in {})",
                                 key, value, last.value + 1, what, Printable(last.entry->name),
                                 checkpoint_.FileOf(*last.entry)));
  }

  void Width(std::string_view key, int64_t value, const Found& found) {
    if (found.entry == nullptr || !found.all_alike || found.value == value) return;
    texts_.push_back(fmt::format("{} is {}, but the tensors have {} ({})", key, value, found.value,
                                 Where(*found.entry)));
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  Found last_layer_, last_expert_, fused_experts_;
  Found vocab_, hidden_, expert_width_, shared_width_, value_heads_, head_dim_;
  const Checkpoint::Entry* mixer_ = nullptr;  // of another kind than config.json says
  int64_t mixer_layer_ = 0;
  bool mixer_linear_ = false;  // what the tensor is of
  std::vector<std::string> texts_;
};

}  // namespace

std::string FindContradictions(const Checkpoint& checkpoint, const ModelConfig& config) {
  return Search(checkpoint, config).Run();
}

}  // namespace banyan
