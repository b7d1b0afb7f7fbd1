// What the DeltaNet layers carry from token to token: one slot for each running sequence, with the
// recurrent state and the last columns before the convolution, f32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// The memory belongs to the backend. A slot needs no clearing: a segment at position 0 starts from
// zero whatever it holds.
class RecurrentState {
 public:
  struct Layer {
    float* states = nullptr;       // [num_slots, value_heads, key_head_dim, value_head_dim]
    float* conv_states = nullptr;  // [num_slots, conv_taps - 1, conv_dim], oldest column first
  };

  // Allocates RecurrentStateBytes (common/plan/decoder_memory.h). kResourceExhausted when the
  // memory is not there.
  static absl::StatusOr<RecurrentState> Create(const DeltaNetShape& shape, int32_t num_layers,
                                               int32_t num_slots, Backend* backend);

  // Queued: what slot `from` holds in every layer, to slot `to`.
  void CopySlot(int32_t from, int32_t to, Backend* backend) const;

  // The i-th linear-attention layer.
  const Layer& layer(int32_t i) const { return layers_[static_cast<size_t>(i)]; }

 private:
  std::vector<Layer> layers_;
  size_t state_bytes_ = 0;  // of one slot
  size_t conv_state_bytes_ = 0;
};

}  // namespace banyan::trunk
