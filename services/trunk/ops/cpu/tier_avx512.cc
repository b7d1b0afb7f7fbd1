#include "services/trunk/ops/cpu/tier_table.h"
#include "services/trunk/ops/cpu/vec_avx512.h"

namespace banyan::trunk::cpu {

constinit const KernelTable kAvx512Kernels = MakeKernelTable<VecAvx512>("avx512");

}  // namespace banyan::trunk::cpu
