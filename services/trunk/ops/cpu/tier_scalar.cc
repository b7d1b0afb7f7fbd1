#include "services/trunk/ops/cpu/tier_table.h"
#include "services/trunk/ops/cpu/vec_scalar.h"

namespace banyan::trunk::cpu {

constinit const KernelTable kScalarKernels = MakeKernelTable<VecScalar>("scalar");

}  // namespace banyan::trunk::cpu
