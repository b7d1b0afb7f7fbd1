#include "services/trunk/model/gated_delta_net.h"

namespace banyan::trunk {

void RunGatedDeltaNet(const DeltaNetShape& shape, const LinearAttentionWeights& weights,
                      const RecurrentState::Layer& state, int32_t num_rows, const Activations& a,
                      Backend* backend) {
  const LinearArgs in[] = {{.x = a.normed, .w = &weights.in_proj_qkvz, .y = a.qkvz},
                           {.x = a.normed, .w = &weights.in_proj_ba, .y = a.ba}};
  backend->Linear(num_rows, in);
  backend->ConvDeltaNet({.shape = shape,
                         .qkvz = a.qkvz,
                         .ba = a.ba,
                         .weight = weights.conv,
                         .neg_decay_rate = weights.neg_decay_rate,
                         .dt_bias = weights.dt_bias,
                         .conv_states = state.conv_states,
                         .qkv = a.qkv,
                         .log_decay = a.log_decay,
                         .beta = a.beta},
                        {.shape = shape,
                         .qkv = a.qkv,
                         .qkvz = a.qkvz,
                         .log_decay = a.log_decay,
                         .beta = a.beta,
                         .norm_weight = weights.norm,
                         .states = state.states,
                         .out = a.delta_out});
  const LinearArgs out[] = {{.x = a.delta_out, .w = &weights.out_proj, .y = a.mixer_out}};
  backend->Linear(num_rows, out);
  backend->AllReduce(a.mixer_out, int64_t{num_rows} * out[0].w->rows);
}

}  // namespace banyan::trunk
