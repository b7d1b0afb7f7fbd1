// The arguments of ops.h as the kernels' launchers take them, which see neither abseil nor the
// checked entries. Pointers are the caller's.
#pragma once

#include "services/trunk/ops/cuda/causal_conv.h"
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/delta_shape.h"
#include "services/trunk/ops/cuda/linear.h"
#include "services/trunk/ops/cuda/paged_attention.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk::cuda {

DeltaShape ToDeviceShape(const DeltaNetShape& s);
AttentionLaunch ToLaunch(const AttentionArgs& a);
ConvLaunch ToLaunch(const CausalConvArgs& a);
// Without the workspace of chunks.
DeltaLaunch ToLaunch(const DeltaNetArgs& a);
// y = w x of each row; without `up`.
LinearMatrix ToLaunch(const float* x, const Matrix& w, float* y);

}  // namespace banyan::trunk::cuda
