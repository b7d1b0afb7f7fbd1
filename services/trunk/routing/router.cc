#include "services/trunk/routing/router.h"

namespace banyan::trunk {

void Router::Route(Backend* backend, int32_t num_rows, const float* x, float* logits,
                   float* shared_gate_logit, const Routing& routing) const {
  const LinearArgs calls[] = {{.x = x, .w = &gate_, .y = logits},
                              {.x = x, .w = &shared_expert_gate_, .y = shared_gate_logit}};
  backend->Linear(num_rows, calls);
  backend->RouterTopK(num_rows, options_.num_experts, options_.top_k, options_.norm_topk_prob,
                      logits, routing.expert_ids, routing.weights);
}

}  // namespace banyan::trunk
