#include "common/cpu/amx_tiles.h"
#include "services/trunk/ops/cpu/linear_amx_kernel.h"

namespace banyan::trunk::cpu {

void LinearBf16Amx(const LinearTile& tile) { AmxLinear<HardwareTiles>::Run(tile); }

}  // namespace banyan::trunk::cpu
