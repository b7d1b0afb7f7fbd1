#include "services/trunk/state/recurrent_state.h"

#include "common/base/status_macros.h"

namespace banyan::trunk {

absl::StatusOr<RecurrentState> RecurrentState::Create(const DeltaNetShape& shape,
                                                      int32_t num_layers, int32_t num_slots,
                                                      Backend* backend) {
  RecurrentState state;
  const size_t slots = static_cast<size_t>(num_slots) * sizeof(float);
  for (int32_t i = 0; i < num_layers; ++i) {
    ASSIGN_OR_RETURN(std::byte * states,
                     backend->AllocateDevice(slots * static_cast<size_t>(shape.state_floats())));
    ASSIGN_OR_RETURN(std::byte * conv, backend->AllocateDevice(
                                           slots * static_cast<size_t>(shape.conv_state_floats())));
    state.layers_.push_back({reinterpret_cast<float*>(states), reinterpret_cast<float*>(conv)});
  }
  return state;
}

}  // namespace banyan::trunk
