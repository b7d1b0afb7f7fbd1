#include "services/trunk/ops/ops.h"

#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace banyan::trunk {

void Backend::RouteToHost(int32_t num_rows, const RouteArgs& args) {
  RouterTopK(num_rows, args.num_experts, args.top_k, args.renormalize, args.logits,
             reinterpret_cast<uint16_t*>(args.ids.device),
             reinterpret_cast<float*>(args.weights.device));
  if (args.rows_dtype == DType::kBF16) {
    RoundRows(num_rows, args.hidden_size, args.input, reinterpret_cast<BF16*>(args.rows.device));
  } else {
    CHECK(reinterpret_cast<const float*>(args.rows.device) == args.input);
  }
  const auto rows = static_cast<size_t>(num_rows);
  const auto chosen = rows * static_cast<size_t>(args.top_k);
  const SharedCopy copies[] = {
      {args.rows, rows * static_cast<size_t>(args.hidden_size) * DTypeSizeBytes(args.rows_dtype)},
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

absl::Status Backend::ReadBackRows(const void* device, size_t row_bytes, int64_t num_rows,
                                   size_t stride_bytes, void* host) {
  if (stride_bytes == row_bytes) {
    return ReadBack(device, row_bytes * static_cast<size_t>(num_rows), host);
  }
  const auto* from = static_cast<const std::byte*>(device);
  auto* to = static_cast<std::byte*>(host);
  for (int64_t row = 0; row < num_rows; ++row, from += row_bytes, to += stride_bytes) {
    RETURN_IF_ERROR(ReadBack(from, row_bytes, to));
  }
  return absl::OkStatus();
}

void Backend::SwigluLinear(int32_t num_rows, float* gate, const float* up, const Matrix& w,
                           float* y) {
  Swiglu(num_rows, w.cols, gate, up, gate);
  const LinearArgs calls[] = {{.x = gate, .w = &w, .y = y}};
  Linear(num_rows, calls);
}

}  // namespace banyan::trunk
