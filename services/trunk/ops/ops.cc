#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

void Backend::RouteToHost(int32_t num_rows, const RouteArgs& args) {
  RouterTopK(num_rows, args.num_experts, args.top_k, args.renormalize, args.logits,
             reinterpret_cast<uint16_t*>(args.ids.device),
             reinterpret_cast<float*>(args.weights.device));
  const auto rows = static_cast<size_t>(num_rows);
  const auto chosen = rows * static_cast<size_t>(args.top_k);
  const SharedCopy copies[] = {
      {args.input, rows * static_cast<size_t>(args.hidden_size) * sizeof(float)},
      {args.ids, chosen * sizeof(uint16_t)},
      {args.weights, chosen * sizeof(float)}};
  CopyToHost(copies);
}

void Backend::CombineFromHost(int32_t num_rows, const CombineArgs& args) {
  const SharedCopy copies[] = {
      {args.routed,
       static_cast<size_t>(num_rows) * static_cast<size_t>(args.hidden_size) * sizeof(float)}};
  CopyToDevice(copies);
  MoeCombine(num_rows, args.hidden_size, reinterpret_cast<const float*>(args.routed.device),
             args.shared, args.gate_logit, args.hidden);
  RmsNorm(num_rows, args.hidden_size, args.eps, args.norm_weight, nullptr, args.hidden,
          args.normed);
}

void Backend::SwigluLinear(int32_t num_rows, float* gate, const float* up, const Matrix& w,
                           float* y) {
  Swiglu(num_rows, w.cols, gate, up, gate);
  const LinearArgs calls[] = {{.x = gate, .w = &w, .y = y}};
  Linear(num_rows, calls);
}

}  // namespace banyan::trunk
