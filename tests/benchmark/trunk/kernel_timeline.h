// Where a decoding step's time goes, kernel by kernel, from what the kernels wrote down
// (services/trunk/ops/cuda/kernel_stamps.h).
#pragma once

namespace banyan::trunk {

// Whether the kernels were built with BANYAN_KERNEL_STAMPS.
bool HasKernelStamps();

// Steps run between these two. Prints medians over layers of the same kernels, from the end of one
// wait to that of the next; a layer begins with its choice of experts.
void ForgetKernels();
void PrintKernels();

}  // namespace banyan::trunk
