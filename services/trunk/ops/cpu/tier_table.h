// Fills a KernelTable from the kernels' templates; included by the tier_*.cc files alone.
#pragma once

#include "services/trunk/ops/cpu/causal_conv_kernel.h"
#include "services/trunk/ops/cpu/delta_net_decode_kernel.h"
#include "services/trunk/ops/cpu/delta_net_prefill_kernel.h"
#include "services/trunk/ops/cpu/kernel_table.h"
#include "services/trunk/ops/cpu/linear_kernel.h"
#include "services/trunk/ops/cpu/norm_kernel.h"
#include "services/trunk/ops/cpu/paged_attention_kernel.h"

namespace banyan::trunk::cpu {

template <typename V>
constexpr KernelTable MakeKernelTable(const char* name) {
  return {.name = name,
          .linear_bf16 = LinearKernel<V, Bf16Weights>,
          .linear_f32 = LinearKernel<V, F32Weights>,
          .linear_i8 = LinearKernel<V, Int8Weights>,
          .linear_arranges = false,
          .linear_outputs = kLinearBlockOutputs,
          .norm_row = NormRowKernel<V>,
          .norm_rope_head = NormRopeHeadKernel<V>,
          .conv_head = ConvHeadKernel<V>,
          .delta_decode = DeltaDecodeKernel<V>,
          .delta_prefill = DeltaPrefillKernel<V>,
          .attend = AttendKernel<V>,
          .merge_sums = MergeSumsKernel<V>,
          .finish_attention = FinishAttentionKernel<V>,
          .swiglu = SwigluKernel<V>,
          .combine_row = CombineRowKernel<V>};
}

}  // namespace banyan::trunk::cpu
