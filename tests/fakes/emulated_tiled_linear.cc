#include "tests/fakes/emulated_tiled_linear.h"

#include "services/trunk/ops/cpu/linear_amx_codes_kernel.h"
#include "services/trunk/ops/cpu/linear_amx_kernel.h"
#include "tests/fakes/emulated_tiles.h"

namespace banyan::test {

void EmulatedLinearBf16(const trunk::cpu::LinearTile& tile) {
  trunk::cpu::AmxLinear<EmulatedTiles>::Run(tile);
}
void EmulatedLinearI8(const trunk::cpu::LinearTile& tile) {
  trunk::cpu::AmxCodes<EmulatedTiles>::Run(tile);
}

}  // namespace banyan::test
