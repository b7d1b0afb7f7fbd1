// The linear-attention mixer (model spec 3.4).
#pragma once

#include <cstdint>

#include "services/trunk/model/activations.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/state/recurrent_state.h"

namespace banyan::trunk {

// a.mixer_out [num_rows, hidden_size] = Mix(a.normed); moves `state` on for the step's segments.
void RunGatedDeltaNet(const DeltaNetShape& shape, const LinearAttentionWeights& weights,
                      const RecurrentState::Layer& state, int32_t num_rows, const Activations& a,
                      Backend* backend);

}  // namespace banyan::trunk
