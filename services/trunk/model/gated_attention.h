// The full-attention mixer with output gate (model spec 3.5).
#pragma once

#include <cstdint>

#include "services/trunk/model/activations.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/state/kv_cache.h"

namespace banyan::trunk {

// a.mixer_out [num_rows, hidden_size] = Attn(a.normed); writes the rows' keys and values to their
// pages.
void RunGatedAttention(const AttentionShape& shape, const FullAttentionWeights& weights,
                       const KvCache::Layer& cache, int32_t num_rows, const Activations& a,
                       Backend* backend);

}  // namespace banyan::trunk
