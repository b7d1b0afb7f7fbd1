#include "services/trunk/model/gated_attention.h"

namespace banyan::trunk {

void RunGatedAttention(const AttentionShape& shape, const FullAttentionWeights& weights,
                       const KvCache::Layer& cache, int32_t num_rows, const Activations& a,
                       Backend* backend) {
  const LinearArgs in[] = {{.x = a.normed, .w = &weights.q_proj, .y = a.q_gate},
                           {.x = a.normed, .w = &weights.k_proj, .y = a.k},
                           {.x = a.normed, .w = &weights.v_proj, .y = a.v}};
  backend->Linear(num_rows, in);
  const AttentionArgs args = {.shape = shape,
                              .q_gate = a.q_gate,
                              .k = a.k,
                              .v = a.v,
                              .q_norm = weights.q_norm,
                              .k_norm = weights.k_norm,
                              .key_pages = cache.keys,
                              .value_pages = cache.values,
                              .out = a.attention_out};
  backend->PrepareAttention(args);
  backend->PagedAttention(args);
  const LinearArgs out[] = {{.x = a.attention_out, .w = &weights.o_proj, .y = a.mixer_out}};
  backend->Linear(num_rows, out);
  backend->AllReduce(a.mixer_out, int64_t{num_rows} * out[0].w->rows);
}

}  // namespace banyan::trunk
