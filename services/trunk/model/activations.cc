#include "services/trunk/model/activations.h"

#include <initializer_list>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/plan/device_arena.h"
#include "common/quant/bf16.h"

namespace banyan::trunk {
namespace {

class Placer {
 public:
  explicit Placer(Backend* backend) : backend_(backend) {}

  template <typename T>
  void Place(T** out, int64_t elements) {
    const size_t bytes = Count<T>(elements);
    if (!status_.ok() || bytes == 0) return;
    const auto memory = backend_->AllocateDevice(bytes);
    status_ = memory.status();
    if (status_.ok()) *out = reinterpret_cast<T*>(*memory);
  }
  template <typename T>
  void Place(Shared<T>* out, int64_t elements) {
    const size_t bytes = Count<T>(elements);
    if (!status_.ok() || bytes == 0) return;
    const auto memory = backend_->AllocateShared(bytes);
    status_ = memory.status();
    if (!status_.ok()) return;
    out->device = reinterpret_cast<T*>(memory->device);
    out->host = reinterpret_cast<T*>(memory->host);
  }

  // Buffers of one stage, at the beginning of what all stages share.
  void PlaceStages(int64_t bytes) { Place(&stages_, bytes); }
  struct Buffer {
    float** out;
    int64_t elements;
  };
  void PlaceStage(std::initializer_list<Buffer> buffers) {
    if (!status_.ok()) return;
    std::byte* at = stages_;
    for (const Buffer& buffer : buffers) {
      if (buffer.elements == 0) continue;
      *buffer.out = reinterpret_cast<float*>(at);
      at += DevicePieceBytes(static_cast<uint64_t>(buffer.elements) * sizeof(float));
    }
  }

  const absl::Status& status() const { return status_; }
  size_t bytes() const { return bytes_; }

 private:
  template <typename T>
  size_t Count(int64_t elements) {
    const size_t bytes = static_cast<size_t>(elements) * sizeof(T);
    bytes_ += bytes;
    return bytes;
  }

  Backend* const backend_;
  absl::Status status_;
  size_t bytes_ = 0;
  std::byte* stages_ = nullptr;
};

}  // namespace

Activations ActivationsFrom(const Activations& all, const ActivationSizes& sizes, int32_t num_rows,
                            int32_t first) {
  Activations out = all;
  const auto skip = [&](auto** at, int64_t elements) {
    if (*at != nullptr) *at += elements / num_rows * first;
  };
  const auto skip_shared = [&](auto* buffer, int64_t elements) {
    skip(&buffer->device, elements);
    skip(&buffer->host, elements);
  };
  skip(&out.hidden, sizes.hidden);
  skip(&out.mixer_out, sizes.mixer_out);
  skip(&out.final_out, sizes.final_out);
  skip(&out.qkvz, sizes.qkvz);
  skip(&out.ba, sizes.ba);
  skip(&out.qkv, sizes.qkv);
  skip(&out.log_decay, sizes.log_decay);
  skip(&out.beta, sizes.beta);
  skip(&out.delta_out, sizes.delta_out);
  skip(&out.q_gate, sizes.q_gate);
  skip(&out.k, sizes.k);
  skip(&out.v, sizes.v);
  skip(&out.attention_out, sizes.attention_out);
  skip(&out.normed, sizes.normed);
  const int64_t row_bytes =
      sizes.normed * static_cast<int64_t>(DTypeSizeBytes(out.expert_rows_dtype));
  skip_shared(&out.expert_rows, row_bytes);
  skip_shared(&out.expert_ids, sizes.expert_ids);
  skip_shared(&out.expert_weights, sizes.expert_weights);
  skip_shared(&out.routed, sizes.routed);
  skip(&out.router_logits, sizes.router_logits);
  skip(&out.shared_gate_logit, sizes.shared_gate_logit);
  skip(&out.ffn_gate, sizes.ffn_gate);
  skip(&out.ffn_up, sizes.ffn_up);
  skip(&out.ffn_out, sizes.ffn_out);
  return out;
}

absl::Status PlaceActivations(const ActivationSizes& sizes, Backend* backend, Activations* out) {
  Placer placer(backend);
  placer.Place(&out->hidden, sizes.hidden);
  placer.Place(&out->mixer_out, sizes.mixer_out);
  placer.Place(&out->final_out, sizes.final_out);
  placer.Place(&out->top_scores, sizes.top_scores);
  placer.Place(&out->top_ids, sizes.top_ids);
  placer.Place(&out->top_bounded, sizes.top_bounded);
  if (sizes.expert_rows > 0) {
    Shared<BF16> rows;
    placer.Place(&out->normed, sizes.normed);
    placer.Place(&rows, sizes.expert_rows);
    out->expert_rows = rows.buffer();
    out->expert_rows_dtype = DType::kBF16;
  } else {
    Shared<float> rows;
    placer.Place(&rows, sizes.normed);
    out->normed = rows.device;
    out->expert_rows = rows.buffer();
  }
  placer.Place(&out->expert_ids, sizes.expert_ids);
  placer.Place(&out->expert_weights, sizes.expert_weights);
  placer.Place(&out->routed, sizes.routed);
  placer.Place(&out->shared_gate_logit, sizes.shared_gate_logit);
  placer.Place(&out->ffn_out, sizes.ffn_out);
  // As ActivationSizes::ForEachStage has them.
  placer.PlaceStages(static_cast<int64_t>(sizes.StageBytes()));
  placer.PlaceStage({{&out->qkvz, sizes.qkvz},
                     {&out->ba, sizes.ba},
                     {&out->qkv, sizes.qkv},
                     {&out->log_decay, sizes.log_decay},
                     {&out->beta, sizes.beta},
                     {&out->delta_out, sizes.delta_out}});
  placer.PlaceStage({{&out->q_gate, sizes.q_gate},
                     {&out->k, sizes.k},
                     {&out->v, sizes.v},
                     {&out->attention_out, sizes.attention_out}});
  placer.PlaceStage({{&out->router_logits, sizes.router_logits},
                     {&out->ffn_gate, sizes.ffn_gate},
                     {&out->ffn_up, sizes.ffn_up}});
  placer.PlaceStage({{&out->logits_rows, sizes.logits_rows}, {&out->logits, sizes.logits}});
  CHECK(placer.bytes() == ActivationBytes(sizes));
  return Annotate(placer.status(), "buffers of a step");
}

}  // namespace banyan::trunk
