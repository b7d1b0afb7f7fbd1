// The MLP of a layer: experts and shared expert, or a dense FFN (model spec 3.7).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "services/trunk/engine/step.h"
#include "services/trunk/experts/expert_transport.h"
#include "services/trunk/model/activations.h"
#include "services/trunk/model/prompt_experts.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/routing/router.h"

namespace banyan::trunk {

// a.hidden += MoE(a.normed) in three queued parts and, between the first and the last of them, the
// call of the experts on the host. The shared expert runs while they compute.

// Ids and weights to a.expert_ids, a.expert_weights; these and the rows to the host, if this device
// `asks` the experts. With few rows also what the shared expert makes of them first, which shares a
// launch with the router.
void QueueRouting(const RouterOptions& options, const MoeWeights& weights, int32_t num_rows,
                  bool asks, const Activations& a, Backend* backend);
void QueueSharedExpert(const MoeWeights& weights, int32_t num_rows, const Activations& a,
                       Backend* backend);
// The experts' sums to the device and, with the shared expert's, into a.hidden; then the norm that
// comes next.
struct NextNorm {
  const float* weight = nullptr;
  float eps = 0;
  float* out = nullptr;
};
void QueueCombine(const MoeWeights& weights, const NextNorm& norm, int32_t num_rows,
                  const Activations& a, Backend* backend);

// Waits for the rows and sends them; what `own` takes of them, unless that is null, is not asked
// for. Errors: the transport's, the device's.
absl::Status DispatchRows(const RouterOptions& options, const Step& step, int32_t layer,
                          int32_t num_rows, const Activations& a, Backend* backend,
                          ExpertTransport* experts, PromptExperts* own);

// a.hidden += FFN(a.normed).
void RunDenseMlp(const FfnWeights& weights, int32_t num_rows, const Activations& a,
                 Backend* backend);

}  // namespace banyan::trunk
