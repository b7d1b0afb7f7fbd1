// Products over many rows by wgmma, which compute capability 9.0 alone has: two to three times as
// fast as linear_many_rows.cuh, to the same bits (one H200: a product of sixteen columns is summed
// as one there as here, whatever their order).
#pragma once

#include <cuda_runtime_api.h>

#include "services/trunk/ops/cuda/linear_batch.h"

namespace banyan::trunk::cuda {

// Whether this program has these kernels.
bool HopperTilesBuilt();

// Raises the limits on shared memory; on devices of that kind.
cudaError_t PrepareHopperTiles();

// Rows of x, split, are kept for so many at a time.
inline constexpr int32_t kHopperSplitRows = 128;

// What tiles take for so many rows and outputs on so many multiprocessors, in the time that few
// rows' kernels take for 32 rows of one output. One H200; the columns make no difference.
int64_t HopperTilesTime(int32_t rows, int64_t outputs, bool codes, int32_t num_sms);

// Splits x of the batch's first matrix to `split` (kHopperSplitRows), for LaunchHopperTiles.
void SplitForHopper(LinearBatch* batch, void* split, cudaStream_t stream);

// Matrices of one kind.
void LaunchHopperTiles(LinearBatch* batch, bool codes, int32_t num_sms, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
