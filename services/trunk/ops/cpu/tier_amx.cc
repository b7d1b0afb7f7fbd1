#include "common/cpu/amx_tiles.h"
#include "services/trunk/ops/cpu/linear_amx_codes_kernel.h"
#include "services/trunk/ops/cpu/linear_amx_kernel.h"

namespace banyan::trunk::cpu {

void LinearBf16Amx(const LinearTile& tile) { AmxLinear<HardwareTiles>::Run(tile); }
void LinearI8Amx(const LinearTile& tile) { AmxCodes<HardwareTiles>::Run(tile); }

}  // namespace banyan::trunk::cpu
