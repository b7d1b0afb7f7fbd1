// Which experts a row goes to, and with what weights (model spec 3.7).
#pragma once

#include <cstdint>

namespace banyan::trunk {

struct RouterOptions {
  int32_t num_experts = 0;
  int32_t top_k = 0;
  bool norm_topk_prob = true;
};

}  // namespace banyan::trunk
