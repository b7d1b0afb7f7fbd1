#include "services/trunk/model/moe_block.h"

#include "common/base/status_macros.h"

namespace banyan::trunk {
namespace {

// a.ffn_out = down(silu(gate x) * (up x)), x = a.normed.
void RunFfn(const FfnWeights& weights, int32_t num_rows, const Activations& a, Backend* backend) {
  const LinearArgs in[] = {{.x = a.normed, .w = &weights.gate_proj, .y = a.ffn_gate},
                           {.x = a.normed, .w = &weights.up_proj, .y = a.ffn_up}};
  backend->Linear(num_rows, in);
  backend->Swiglu(num_rows, weights.gate_proj.rows, a.ffn_gate, a.ffn_up, a.ffn_gate);
  const LinearArgs out[] = {{.x = a.ffn_gate, .w = &weights.down_proj, .y = a.ffn_out}};
  backend->Linear(num_rows, out);
}

}  // namespace

void QueueRouting(const Router::Options& options, const MoeWeights& weights, int32_t num_rows,
                  const Activations& a, Backend* backend) {
  const Router router(options, weights.router, weights.shared_expert_gate);
  router.Route(backend, num_rows, a.normed, a.router_logits, a.shared_gate_logit,
               {.expert_ids = a.expert_ids, .weights = a.expert_weights});
  const int64_t rows = num_rows;
  const SharedCopy copies[] = {a.normed.First(rows * weights.router.cols),
                               a.expert_ids.First(rows * options.top_k),
                               a.expert_weights.First(rows * options.top_k)};
  backend->CopyToHost(copies);
}

void QueueSharedExpert(const MoeWeights& weights, int32_t num_rows, const Activations& a,
                       Backend* backend) {
  RunFfn(weights.shared_expert, num_rows, a, backend);
}

void QueueCombine(const MoeWeights& weights, int32_t num_rows, const Activations& a,
                  Backend* backend) {
  const SharedCopy copies[] = {a.routed.First(int64_t{num_rows} * weights.router.cols)};
  backend->CopyToDevice(copies);
  backend->MoeCombine(num_rows, weights.router.cols, a.routed, a.ffn_out, a.shared_gate_logit,
                      a.hidden);
}

absl::Status DispatchRows(const Router::Options& options, const Step& step, int32_t layer,
                          int32_t num_rows, const Activations& a, Backend* backend,
                          ExpertTransport* experts) {
  RETURN_IF_ERROR(backend->AwaitHost());
  return experts->Dispatch({.step_id = step.step_id,
                            .layer = layer,
                            .num_rows = num_rows,
                            .top_k = options.top_k,
                            .activations = a.normed.host,
                            .expert_ids = a.expert_ids.host,
                            .weights = a.expert_weights.host,
                            .trace = step.trace});
}

void RunDenseMlp(const FfnWeights& weights, int32_t num_rows, const Activations& a,
                 Backend* backend) {
  RunFfn(weights, num_rows, a, backend);
  backend->AddRows(num_rows, weights.gate_proj.cols, a.ffn_out, a.hidden);
}

}  // namespace banyan::trunk
