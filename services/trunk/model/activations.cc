#include "services/trunk/model/activations.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace banyan::trunk {
namespace {

enum class Reach { kDevice, kShared };

// Calls place(pointer, elements, reach) for every buffer.
template <typename Place>
void Describe(const ModelConfig& c, const ActivationLimits& limits, Activations* a, Place& place) {
  const int64_t rows = limits.max_rows;
  const int64_t hidden = c.hidden_size;
  place(&a->hidden, rows * hidden, Reach::kDevice);
  place(&a->mixer_out, rows * hidden, Reach::kDevice);
  place(&a->final_out, rows * hidden, Reach::kDevice);
  place(&a->logits_rows, limits.max_logits_rows * hidden, Reach::kDevice);
  place(&a->logits, int64_t{limits.max_logits_rows} * c.vocab_size, Reach::kDevice);

  const auto has = [](const auto& kinds, auto kind) {
    return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
  };
  const int64_t linear = has(c.mixers, MixerKind::kLinearAttention) ? rows : 0;
  place(&a->qkvz, linear * (c.linear_conv_dim() + c.linear_value_dim()), Reach::kDevice);
  place(&a->ba, linear * 2 * c.linear_num_value_heads, Reach::kDevice);
  place(&a->qkv, linear * c.linear_conv_dim(), Reach::kDevice);
  place(&a->log_decay, linear * c.linear_num_value_heads, Reach::kDevice);
  place(&a->beta, linear * c.linear_num_value_heads, Reach::kDevice);
  place(&a->delta_out, linear * c.linear_value_dim(), Reach::kDevice);

  const int64_t full = has(c.mixers, MixerKind::kFullAttention) ? rows : 0;
  const int64_t q_dim = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_dim = int64_t{c.num_key_value_heads} * c.head_dim;
  place(&a->q_gate, full * 2 * q_dim, Reach::kDevice);
  place(&a->k, full * kv_dim, Reach::kDevice);
  place(&a->v, full * kv_dim, Reach::kDevice);
  place(&a->attention_out, full * q_dim, Reach::kDevice);

  const bool moe = has(c.mlps, MlpKind::kMoe);
  const bool dense = has(c.mlps, MlpKind::kDense);
  const int64_t width =
      std::max(moe ? c.shared_expert_intermediate_size : 0, dense ? c.intermediate_size : 0);
  const int64_t routed = moe ? rows : 0;
  place(&a->normed, rows * hidden, Reach::kShared);
  place(&a->expert_ids, routed * c.num_experts_per_tok, Reach::kShared);
  place(&a->expert_weights, routed * c.num_experts_per_tok, Reach::kShared);
  place(&a->routed, routed * hidden, Reach::kShared);
  place(&a->router_logits, routed * c.num_experts, Reach::kDevice);
  place(&a->shared_gate_logit, routed, Reach::kDevice);
  place(&a->ffn_gate, rows * width, Reach::kDevice);
  place(&a->ffn_up, rows * width, Reach::kDevice);
  place(&a->ffn_out, rows * hidden, Reach::kDevice);
}

struct Counter {
  size_t bytes = 0;
  template <typename T>
  void operator()(T**, int64_t elements, Reach) {
    bytes += static_cast<size_t>(elements) * sizeof(T);
  }
};

struct Placer {
  Backend* backend;
  absl::Status status;
  template <typename T>
  void operator()(T** out, int64_t elements, Reach reach) {
    if (!status.ok() || elements == 0) return;
    const size_t bytes = static_cast<size_t>(elements) * sizeof(T);
    absl::StatusOr<std::byte*> memory =
        reach == Reach::kShared ? backend->AllocateShared(bytes) : backend->AllocateDevice(bytes);
    if (!memory.ok()) {
      status = memory.status();
      return;
    }
    *out = reinterpret_cast<T*>(*memory);
  }
};

}  // namespace

size_t ActivationBytes(const ModelConfig& config, const ActivationLimits& limits) {
  Activations unused;
  Counter counter;
  Describe(config, limits, &unused, counter);
  return counter.bytes;
}

absl::Status PlaceActivations(const ModelConfig& config, const ActivationLimits& limits,
                              Backend* backend, Activations* out) {
  Placer placer{backend, absl::OkStatus()};
  Describe(config, limits, out, placer);
  return placer.status;
}

}  // namespace banyan::trunk
