#include "services/trunk/ops/cuda/linear_hopper.h"

namespace banyan::trunk::cuda {

bool HopperTilesBuilt() { return false; }
cudaError_t PrepareHopperTiles() { return cudaErrorNoKernelImageForDevice; }
int64_t HopperTilesTime(int32_t /*rows*/, int64_t /*outputs*/, bool /*codes*/,
                        int32_t /*num_sms*/) {
  return 0;
}
void SplitForHopper(LinearBatch* /*batch*/, void* /*split*/, cudaStream_t /*stream*/) {}
void LaunchHopperTiles(LinearBatch* /*batch*/, bool /*codes*/, int32_t /*num_sms*/,
                       cudaStream_t /*stream*/) {}

}  // namespace banyan::trunk::cuda
