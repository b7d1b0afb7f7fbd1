#include "services/trunk/model/moe_block.h"

#include <span>

#include "common/base/status_macros.h"

namespace banyan::trunk {
namespace {

// Up to here a launch costs more than reading the shared expert's weights before the rows go to the
// host. Results are the same either way.
constexpr int32_t kMostMergedRows = 16;

bool Merged(int32_t num_rows) { return num_rows <= kMostMergedRows; }

LinearArgs Gate(const FfnWeights& weights, const Activations& a) {
  return {.x = a.normed, .w = &weights.gate_proj, .y = a.ffn_gate};
}
LinearArgs Up(const FfnWeights& weights, const Activations& a) {
  return {.x = a.normed, .w = &weights.up_proj, .y = a.ffn_up};
}

// a.ffn_out = down(silu(gate) * up), of all devices.
void Down(const FfnWeights& weights, int32_t num_rows, const Activations& a, Backend* backend) {
  backend->SwigluLinear(num_rows, a.ffn_gate, a.ffn_up, weights.down_proj, a.ffn_out);
  backend->AllReduce(a.ffn_out, int64_t{num_rows} * weights.down_proj.rows);
}

void GateAndUp(const FfnWeights& weights, int32_t num_rows, const Activations& a,
               Backend* backend) {
  const LinearArgs in[] = {Gate(weights, a), Up(weights, a)};
  backend->Linear(num_rows, in);
}

}  // namespace

void QueueRouting(const RouterOptions& options, const MoeWeights& weights, int32_t num_rows,
                  bool asks, const Activations& a, Backend* backend) {
  const LinearArgs in[] = {
      {.x = a.normed, .w = &weights.router, .y = a.router_logits},
      {.x = a.normed, .w = &weights.shared_expert_gate, .y = a.shared_gate_logit},
      Gate(weights.shared_expert, a),
      Up(weights.shared_expert, a)};
  const std::span<const LinearArgs> wanted = std::span(in).first(Merged(num_rows) ? 4 : 2);
  backend->Linear(num_rows, asks ? wanted : wanted.subspan(1));
  if (!asks) return;
  backend->RouteToHost(num_rows, {.num_experts = options.num_experts,
                                  .top_k = options.top_k,
                                  .renormalize = options.norm_topk_prob,
                                  .hidden_size = weights.router.cols,
                                  .logits = a.router_logits,
                                  .input = a.normed,
                                  .rows = a.expert_rows,
                                  .rows_dtype = a.expert_rows_dtype,
                                  .ids = a.expert_ids.buffer(),
                                  .weights = a.expert_weights.buffer()});
}

void QueueSharedExpert(const MoeWeights& weights, int32_t num_rows, const Activations& a,
                       Backend* backend) {
  if (!Merged(num_rows)) GateAndUp(weights.shared_expert, num_rows, a, backend);
  Down(weights.shared_expert, num_rows, a, backend);
}

void QueueCombine(const MoeWeights& weights, const NextNorm& norm, int32_t num_rows,
                  const Activations& a, Backend* backend) {
  backend->CombineFromHost(num_rows, {.hidden_size = weights.router.cols,
                                      .routed = a.routed.buffer(),
                                      .shared = a.ffn_out,
                                      .gate_logit = a.shared_gate_logit,
                                      .hidden = a.hidden,
                                      .eps = norm.eps,
                                      .norm_weight = norm.weight,
                                      .normed = norm.out});
}

absl::Status DispatchRows(const RouterOptions& options, const Step& step, int32_t layer,
                          int32_t num_rows, const Activations& a, Backend* backend,
                          ExpertTransport* experts, PromptExperts* own) {
  RETURN_IF_ERROR(backend->AwaitHost());
  const uint16_t* ids = a.expert_ids.host;
  if (own != nullptr) ids = own->Take(num_rows, ids, a.expert_weights.host);
  return experts->Dispatch({.step_id = step.step_id,
                            .layer = layer,
                            .num_rows = num_rows,
                            .top_k = options.top_k,
                            .activations = a.expert_rows.host,
                            .activations_dtype = a.expert_rows_dtype,
                            .expert_ids = ids,
                            .weights = a.expert_weights.host,
                            .trace = step.trace});
}

void RunDenseMlp(const FfnWeights& weights, int32_t num_rows, const Activations& a,
                 Backend* backend) {
  GateAndUp(weights, num_rows, a, backend);
  Down(weights, num_rows, a, backend);
  backend->AddRows(num_rows, weights.gate_proj.cols, a.ffn_out, a.hidden);
}

}  // namespace banyan::trunk
