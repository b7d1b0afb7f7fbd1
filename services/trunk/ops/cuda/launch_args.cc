#include "services/trunk/ops/cuda/launch_args.h"

#include "common/tensor/dtype.h"

namespace banyan::trunk::cuda {

DeltaShape ToDeviceShape(const DeltaNetShape& s) {
  return {.num_key_heads = s.num_key_heads,
          .num_value_heads = s.num_value_heads,
          .key_head_dim = s.key_head_dim,
          .value_head_dim = s.value_head_dim,
          .conv_taps = s.conv_taps,
          .eps = s.eps,
          .ratio = s.ratio(),
          .key_dim = s.key_dim(),
          .value_dim = s.value_dim(),
          .conv_dim = s.conv_dim(),
          .qkvz_dim = s.qkvz_dim(),
          .group_dim = 2 * s.key_head_dim + 2 * s.ratio() * s.value_head_dim};
}

AttentionLaunch ToLaunch(const AttentionArgs& a) {
  return {.num_heads = a.shape.num_heads,
          .num_kv_heads = a.shape.num_kv_heads,
          .group = a.shape.num_heads / a.shape.num_kv_heads,
          .head_dim = a.shape.head_dim,
          .rotary_dim = a.shape.rotary_dim,
          .eps = a.shape.eps,
          .q_gate = a.q_gate,
          .k = a.k,
          .v = a.v,
          .q_norm = a.q_norm,
          .k_norm = a.k_norm,
          .bf16_pages = a.shape.cache_dtype == DType::kBF16,
          .key_pages = a.key_pages,
          .value_pages = a.value_pages,
          .out = a.out};
}

ConvLaunch ToLaunch(const CausalConvArgs& a) {
  return {.shape = ToDeviceShape(a.shape),
          .qkvz = a.qkvz,
          .ba = a.ba,
          .weight = a.weight,
          .neg_decay_rate = a.neg_decay_rate,
          .dt_bias = a.dt_bias,
          .conv_states = a.conv_states,
          .qkv = a.qkv,
          .log_decay = a.log_decay,
          .beta = a.beta};
}

DeltaLaunch ToLaunch(const DeltaNetArgs& a) {
  return {.shape = ToDeviceShape(a.shape),
          .qkv = a.qkv,
          .qkvz = a.qkvz,
          .log_decay = a.log_decay,
          .beta = a.beta,
          .norm_weight = a.norm_weight,
          .states = a.states,
          .out = a.out};
}

LinearMatrix ToLaunch(const float* x, const Matrix& w, float* y) {
  return {.x = x,
          .w = w.data,
          .scales = w.scales,
          .y = y,
          .n = w.rows,
          .k = w.cols,
          .kind = w.dtype == DType::kBF16 ? WeightKind::kBf16
                  : w.dtype == DType::kI8 ? WeightKind::kInt8
                                          : WeightKind::kF32};
}

}  // namespace banyan::trunk::cuda
