#include <algorithm>

#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear_hopper.h"
#include "services/trunk/ops/cuda/linear_hopper_tiles.cuh"

namespace banyan::trunk::cuda {
namespace {

// x, or silu(x) * up where that is not null, to [group of rows][block][term][half][2][row][8] in
// bf16: sixteen columns of a half are the products that Mma sums at once, in MultiplyBlock's order.
__global__ void __launch_bounds__(kThreads)
    SplitRows(const float* x, const float* up, int32_t num_rows, int32_t k, uint32_t* split) {
  BeginKernel();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int num_blocks = k / kBlock;
  const auto t = static_cast<int>(i % 4);
  const int64_t unit = i / 32;  // eight rows, one block
  const auto block = static_cast<int>(unit % num_blocks);
  const auto row = static_cast<int>(unit / num_blocks * 8 + i / 4 % 8);
  if (row >= (num_rows + kTileRows - 1) / kTileRows * kTileRows) return;
  const int64_t from = min(row, num_rows - 1) * int64_t{k} + block * kBlock + t * 8;
  const TokenFragment token = LoadToken<true>(x + from, up == nullptr ? nullptr : up + from, true);
  constexpr int kWords = kColumnBytes / 4;
  uint32_t* const to = split +
                       (int64_t{row / kTileRows} * num_blocks + block) * (kTerms * 4 * kWords) +
                       row % kTileRows * 4 + t;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    to[(term * 4 + 0) * kWords] = token.term[term].x;
    to[(term * 4 + 1) * kWords] = token.term[term].y;
    to[(term * 4 + 2) * kWords] = token.term[term].z;
    to[(term * 4 + 3) * kWords] = token.term[term].w;
  }
}

// Wide tiles read x less often, narrow ones keep more multiprocessors busy.
template <bool kCodes>
using WideTile = Tile<2, kCodes>;
template <bool kCodes>
using NarrowTile = Tile<1, kCodes>;

int64_t NumTiles(int32_t rows, int64_t output_tiles) {
  return output_tiles * ((rows + kTileRows - 1) / kTileRows);
}

// As HopperTilesTime: of all tiles, which multiprocessors take in turn.
int64_t WideTime(int64_t tiles, bool codes, int32_t num_sms) {
  return (tiles + num_sms - 1) / num_sms * (codes ? 14600 : 11700);
}
int64_t NarrowTime(int64_t tiles, bool codes, int32_t num_sms) {
  return (tiles + num_sms - 1) / num_sms * (codes ? 11000 : 8100);
}

template <typename T>
void LaunchTiles(LinearBatch* batch, int32_t num_sms, cudaStream_t stream) {
  const int64_t tiles = NumTiles(batch->num_rows, PlaceCtas(batch, T::kOutputs));
  LaunchAlone(HopperTiles<T>, static_cast<unsigned>(std::min<int64_t>(tiles, num_sms)),
              T::kNumThreads, T::kBytes, stream, *batch);
}

template <bool kCodes>
void LaunchOfKind(LinearBatch* batch, int32_t num_sms, cudaStream_t stream) {
  const int64_t wide = NumTiles(batch->num_rows, PlaceCtas(batch, WideTile<kCodes>::kOutputs));
  const int64_t narrow = NumTiles(batch->num_rows, PlaceCtas(batch, NarrowTile<kCodes>::kOutputs));
  if (NarrowTime(narrow, kCodes, num_sms) < WideTime(wide, kCodes, num_sms)) {
    return LaunchTiles<NarrowTile<kCodes>>(batch, num_sms, stream);
  }
  LaunchTiles<WideTile<kCodes>>(batch, num_sms, stream);
}

template <typename T>
cudaError_t Allow() {
  return cudaFuncSetAttribute(HopperTiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              T::kBytes);
}

}  // namespace

bool HopperTilesBuilt() { return true; }

cudaError_t PrepareHopperTiles() {
  cudaError_t error = Allow<WideTile<false>>();
  if (error == cudaSuccess) error = Allow<WideTile<true>>();
  if (error == cudaSuccess) error = Allow<NarrowTile<false>>();
  if (error == cudaSuccess) error = Allow<NarrowTile<true>>();
  return error;
}

int64_t HopperTilesTime(int32_t rows, int64_t outputs, bool codes, int32_t num_sms) {
  const auto tiles = [&](int64_t tile_outputs) {
    return NumTiles(rows, (outputs + tile_outputs - 1) / tile_outputs);
  };
  return std::min(WideTime(tiles(WideTile<false>::kOutputs), codes, num_sms),
                  NarrowTime(tiles(NarrowTile<false>::kOutputs), codes, num_sms));
}

void SplitForHopper(LinearBatch* batch, void* split, cudaStream_t stream) {
  const LinearMatrix& like = batch->matrices[0];
  const int64_t rows = (int64_t{batch->num_rows} + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t threads = rows * like.k / 8;
  Launch(SplitRows, static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0, stream,
         like.x, like.up, batch->num_rows, like.k, static_cast<uint32_t*>(split));
  batch->split = static_cast<const uint4*>(split);
}

void LaunchHopperTiles(LinearBatch* batch, bool codes, int32_t num_sms, cudaStream_t stream) {
  return codes ? LaunchOfKind<true>(batch, num_sms, stream)
               : LaunchOfKind<false>(batch, num_sms, stream);
}

}  // namespace banyan::trunk::cuda
