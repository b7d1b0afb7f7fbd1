#include "services/trunk/ops/cpu/tier_table.h"
#include "services/trunk/ops/cpu/vec_avx2.h"

namespace banyan::trunk::cpu {

constinit const KernelTable kAvx2Kernels = MakeKernelTable<VecAvx2>("avx2");

}  // namespace banyan::trunk::cpu
