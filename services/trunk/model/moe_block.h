// The MLP of a layer: experts and shared expert, or a dense FFN (model spec 3.7).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "services/trunk/engine/step.h"
#include "services/trunk/experts/expert_transport.h"
#include "services/trunk/model/activations.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/routing/router.h"

namespace banyan::trunk {

// a.hidden += MoE(a.normed): the routed experts through `experts`, the shared expert here while
// they compute. Leaves ids and weights in a.expert_ids, a.expert_weights. Errors: the transport's.
absl::Status RunMoeBlock(const Router::Options& options, const MoeWeights& weights,
                         const Step& step, int32_t layer, int32_t num_rows, const Activations& a,
                         Backend* backend, ExpertTransport* experts);

// a.hidden += FFN(a.normed).
void RunDenseMlp(const FfnWeights& weights, int32_t num_rows, const Activations& a,
                 Backend* backend);

}  // namespace banyan::trunk
