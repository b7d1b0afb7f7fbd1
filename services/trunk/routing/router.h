// Which experts a row goes to, and with what weights (model spec 3.7).
#pragma once

#include <cstdint>

#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// Host-readable after Backend::Synchronize. Descending weights; ids distinct within a row; equal
// probabilities go to the lowest id.
struct Routing {
  uint16_t* expert_ids = nullptr;  // [num_rows, top_k]
  float* weights = nullptr;        // [num_rows, top_k]
};

class Router {
 public:
  struct Options {
    int32_t num_experts = 0;
    int32_t top_k = 0;
    bool norm_topk_prob = true;
  };

  // `gate` [num_experts, hidden_size]; `shared_expert_gate` [1, hidden_size] is multiplied in the
  // same pass over the rows.
  Router(const Options& options, const Matrix& gate, const Matrix& shared_expert_gate)
      : options_(options), gate_(gate), shared_expert_gate_(shared_expert_gate) {}

  const Options& options() const { return options_; }

  //   x [num_rows, hidden_size]   logits [num_rows, num_experts] scratch
  //   shared_gate_logit [num_rows] out
  void Route(Backend* backend, int32_t num_rows, const float* x, float* logits,
             float* shared_gate_logit, const Routing& routing) const;

 private:
  Options options_;
  Matrix gate_;
  Matrix shared_expert_gate_;
};

}  // namespace banyan::trunk
