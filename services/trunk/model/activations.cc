#include "services/trunk/model/activations.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace banyan::trunk {
namespace {

// Calls place(pointer, elements) for every buffer.
template <typename Place>
void Describe(const ModelConfig& c, const ActivationLimits& limits, Activations* a, Place& place) {
  const int64_t rows = limits.max_rows;
  const int64_t hidden = c.hidden_size;
  place(&a->hidden, rows * hidden);
  place(&a->mixer_out, rows * hidden);
  place(&a->final_out, rows * hidden);
  place(&a->logits_rows, limits.max_logits_rows * hidden);
  place(&a->logits, int64_t{limits.max_logits_rows} * c.vocab_size);

  const auto has = [](const auto& kinds, auto kind) {
    return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
  };
  const int64_t linear = has(c.mixers, MixerKind::kLinearAttention) ? rows : 0;
  place(&a->qkvz, linear * (c.linear_conv_dim() + c.linear_value_dim()));
  place(&a->ba, linear * 2 * c.linear_num_value_heads);
  place(&a->qkv, linear * c.linear_conv_dim());
  place(&a->log_decay, linear * c.linear_num_value_heads);
  place(&a->beta, linear * c.linear_num_value_heads);
  place(&a->delta_out, linear * c.linear_value_dim());

  const int64_t full = has(c.mixers, MixerKind::kFullAttention) ? rows : 0;
  const int64_t q_dim = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_dim = int64_t{c.num_key_value_heads} * c.head_dim;
  place(&a->q_gate, full * 2 * q_dim);
  place(&a->k, full * kv_dim);
  place(&a->v, full * kv_dim);
  place(&a->attention_out, full * q_dim);

  const bool moe = has(c.mlps, MlpKind::kMoe);
  const bool dense = has(c.mlps, MlpKind::kDense);
  const int64_t width =
      std::max(moe ? c.shared_expert_intermediate_size : 0, dense ? c.intermediate_size : 0);
  const int64_t routed = moe ? rows : 0;
  place(&a->normed, rows * hidden);
  place(&a->expert_ids, routed * c.num_experts_per_tok);
  place(&a->expert_weights, routed * c.num_experts_per_tok);
  place(&a->routed, routed * hidden);
  place(&a->router_logits, routed * c.num_experts);
  place(&a->shared_gate_logit, routed);
  place(&a->ffn_gate, rows * width);
  place(&a->ffn_up, rows * width);
  place(&a->ffn_out, rows * hidden);
}

struct Counter {
  size_t bytes = 0;
  template <typename T>
  void operator()(T**, int64_t elements) {
    bytes += static_cast<size_t>(elements) * sizeof(T);
  }
  template <typename T>
  void operator()(Shared<T>*, int64_t elements) {
    bytes += static_cast<size_t>(elements) * sizeof(T);
  }
};

struct Placer {
  Backend* backend;
  absl::Status status;
  template <typename T>
  void operator()(T** out, int64_t elements) {
    if (!status.ok() || elements == 0) return;
    const auto memory = backend->AllocateDevice(static_cast<size_t>(elements) * sizeof(T));
    status = memory.status();
    if (status.ok()) *out = reinterpret_cast<T*>(*memory);
  }
  template <typename T>
  void operator()(Shared<T>* out, int64_t elements) {
    if (!status.ok() || elements == 0) return;
    const auto memory = backend->AllocateShared(static_cast<size_t>(elements) * sizeof(T));
    status = memory.status();
    if (!status.ok()) return;
    out->device = reinterpret_cast<T*>(memory->device);
    out->host = reinterpret_cast<T*>(memory->host);
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
