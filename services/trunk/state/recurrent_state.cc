#include "services/trunk/state/recurrent_state.h"

#include <utility>

#include "common/base/strings.h"

namespace banyan::trunk {

absl::StatusOr<RecurrentState> RecurrentState::Create(const DeltaNetShape& shape,
                                                      int32_t num_layers, int32_t num_slots,
                                                      Backend* backend) {
  RecurrentState state;
  state.state_bytes_ = static_cast<size_t>(shape.state_floats()) * sizeof(float);
  state.conv_state_bytes_ = static_cast<size_t>(shape.conv_state_floats()) * sizeof(float);
  const size_t slots = static_cast<size_t>(num_slots) * sizeof(float);
  for (int32_t i = 0; i < num_layers; ++i) {
    Layer layer;
    for (const auto& [floats, at] : {std::pair(shape.state_floats(), &layer.states),
                                     {shape.conv_state_floats(), &layer.conv_states}}) {
      const auto memory = backend->AllocateDevice(slots * static_cast<size_t>(floats));
      if (!memory.ok()) return Annotate(memory.status(), "recurrent state");
      *at = reinterpret_cast<float*>(*memory);
    }
    state.layers_.push_back(layer);
  }
  return state;
}

void RecurrentState::CopySlot(int32_t from, int32_t to, Backend* backend) const {
  const auto copy = [&](float* slots, size_t bytes) {
    auto* const base = reinterpret_cast<std::byte*>(slots);
    backend->CopyWithin(base + static_cast<size_t>(from) * bytes, bytes,
                        base + static_cast<size_t>(to) * bytes);
  };
  for (const Layer& layer : layers_) {
    copy(layer.states, state_bytes_);
    copy(layer.conv_states, conv_state_bytes_);
  }
}

}  // namespace banyan::trunk
