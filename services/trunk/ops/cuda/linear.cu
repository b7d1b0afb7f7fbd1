#include <algorithm>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/linear.h"
#include "services/trunk/ops/cuda/linear_clusters.cuh"
#include "services/trunk/ops/cuda/linear_few_rows.cuh"
#include "services/trunk/ops/cuda/linear_hopper.h"
#include "services/trunk/ops/cuda/linear_many_rows.cuh"

namespace banyan::trunk::cuda {
namespace {

// Any shape and alignment: a warp computes one output for kRowsAtOnce rows at a time.
constexpr int kRowsAtOnce = 4;

template <typename W>
__device__ __forceinline__ float Weight(const W* w, int64_t at);
template <>
__device__ __forceinline__ float Weight(const float* w, int64_t at) {
  return w[at];
}
template <>
__device__ __forceinline__ float Weight(const uint16_t* w, int64_t at) {
  return Bf16ToFloat(w[at]);
}
template <>
__device__ __forceinline__ float Weight(const int8_t* w, int64_t at) {
  return static_cast<float>(w[at]);
}

template <typename W>
__global__ void __launch_bounds__(kThreads) AnyShape(LinearMatrix matrix, int32_t num_rows) {
  BeginKernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (n >= matrix.n) return;
  const int64_t k = matrix.k;
  const int64_t groups = (k + kGroupColumns - 1) / kGroupColumns;
  const W* w = static_cast<const W*>(matrix.w) + n * k;
  for (int32_t row0 = static_cast<int32_t>(blockIdx.y) * kRowsAtOnce; row0 < num_rows;
       row0 += static_cast<int32_t>(gridDim.y) * kRowsAtOnce) {
    float acc[kRowsAtOnce] = {};
    for (int64_t i = lane; i < k; i += kWarp) {
      float weight = Weight<W>(w, i);
      if (sizeof(W) == 1) weight *= matrix.scales[n * groups + i / kGroupColumns];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (row0 + r < num_rows) acc[r] = fmaf(matrix.x[(row0 + r) * k + i], weight, acc[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const float sum = WarpSum(acc[r]);
      if (lane == 0 && row0 + r < num_rows) matrix.y[(row0 + r) * int64_t{matrix.n} + n] = sum;
    }
  }
}

bool FitsTensorCores(const LinearMatrix& m) {
  if (m.k == 0) return false;
  switch (m.kind) {
    case WeightKind::kBf16:
      return m.k % kBlock == 0;
    case WeightKind::kInt8:
      return CodesLieInPairs(m.k);
    case WeightKind::kF32:
      return false;
  }
  return false;
}

// Up to here x is kept split in shared memory.
constexpr int32_t kMostStagedRows = 4;
constexpr int kJoinBytes = 32 << 10;  // the most that a kernel takes beside it

constexpr int64_t SplitRowBytes(int32_t k) { return int64_t{2} * kTerms * k; }

int StagedBytes(const Batch& batch) {
  return static_cast<int>(SplitRowBytes(batch.matrices[0].k)) * batch.num_rows;
}

bool IsStaged(const Batch& batch, const LinearTuning& tuning) {
  return batch.num_rows <= kMostStagedRows &&
         StagedBytes(batch) + kJoinBytes <= tuning.shared_bytes / 2;
}

// kSwiglu: such a batch may have `up`.
template <typename Source, int kN, int kAhead, int kCtasPerSm, Rows kRows, bool kSwiglu>
void LaunchFew(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  const int tiles = PlaceCtas(batch, 16);
  const int groups = (batch->num_rows + 8 * kN - 1) / (8 * kN);
  const int resident = std::max(1, tuning.num_sms * kCtasPerSm / groups);
  const dim3 grid(static_cast<unsigned>(std::min(tiles, resident)), static_cast<unsigned>(groups));
  auto kernel = FewRows<Source, kN, kAhead, kCtasPerSm, kRows, false>;
  if constexpr (kSwiglu) {
    if (batch->matrices[0].up != nullptr) {
      kernel = FewRows<Source, kN, kAhead, kCtasPerSm, kRows, true>;
    }
  }
  Launch(kernel, grid, kFewThreads,
         static_cast<size_t>(kRows == Rows::kStaged ? StagedBytes(*batch) : 0), stream, *batch);
}

template <int kN, int kAhead, Rows kRows>
void LaunchFewOfBoth(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  const int tiles = PlaceCtas(batch, 16);
  const int bf16_tiles = batch->first_cta[batch->num_bf16];
  // At least one for either kind.
  const int ctas = std::clamp(tuning.num_sms, 2, tiles);
  batch->bf16_ctas = std::clamp(static_cast<int>(int64_t{ctas} * bf16_tiles / tiles), 1, ctas - 1);
  Launch(FewRowsOfBoth<kN, kAhead, kRows>, static_cast<unsigned>(ctas), kFewThreads,
         static_cast<size_t>(kRows == Rows::kStaged ? StagedBytes(*batch) : 0), stream, *batch);
}

// Bytes of x split for 8 kN rows; and all that a CTA takes.
template <typename C, int kN>
constexpr auto kClusterBytes = static_cast<size_t>(SplitRowBytes(C::kColumnsOfCta) * 8 * kN);
template <typename C, int kN>
constexpr auto kClusterShared = static_cast<int>(sizeof(Meeting<kN>) + kClusterBytes<C, kN>);

// That the device runs at once: the first that asks, others of a process are of its kind.
template <typename C, int kN>
int MostClusters() {
  static const int most = [] {
    cudaLaunchAttribute attribute = ClusterOf(C::kCtas);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(C::kCtas);
    config.blockDim = dim3(kFewThreads);
    config.dynamicSmemBytes = kClusterBytes<C, kN>;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    cudaOccupancyMaxActiveClusters(&clusters, FewRowsByClusters<C, kN>, &config);
    return std::max(clusters, 1);
  }();
  return most;
}

// Whether a CTA may have so much; nothing is launched where not.
template <typename C, int kN>
bool LaunchInClusters(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  if (kClusterShared < C, kN >> tuning.shared_bytes) return false;
  const int tiles = PlaceCtas(batch, C::kOutputs);
  const int clusters = std::min(tiles, MostClusters<C, kN>());
  LaunchClusters(FewRowsByClusters<C, kN>, C::kCtas, static_cast<unsigned>(clusters * C::kCtas),
                 kFewThreads, kClusterBytes<C, kN>, stream, *batch);
  return true;
}

template <typename C>
bool LaunchInClusters(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  return batch->num_rows <= 8 ? LaunchInClusters<C, 1>(batch, tuning, stream)
                              : LaunchInClusters<C, 2>(batch, tuning, stream);
}

// By the columns that they take.
using ClusterOf2048 = Cluster<2, 128>;
using ClusterOf4096 = Cluster<2, 256>;
constexpr int32_t kMostRowsOfClusters = 16;
static_assert(ClusterOf2048::kInputs == 2048 && ClusterOf4096::kInputs == 4096);

// Tiles of ManyRows, from large to small. Those that fill a multiprocessor's registers are the
// fastest; others keep more of them busy where there are few, and their rings fit every device.
using LargeTile = Tile<128, 128, 2, 4, 4, 1>;
using MediumTile = Tile<128, 64, 2, 4, 3, 2>;
using SmallTile = Tile<64, 64, 2, 4, 4, 2>;

template <typename T, bool kCodes>
constexpr int kRingBytes = T::kStages* Stage<T, kCodes>::kBytes;
static_assert(kRingBytes<MediumTile, false> <= 99 << 10 &&
              kRingBytes<SmallTile, false> <= 99 << 10);

template <typename T, bool kCodes>
void LaunchMany(Batch* batch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((batch->num_rows + T::kRows - 1) / T::kRows),
                  static_cast<unsigned>(PlaceCtas(batch, T::kOutputs)));
  LaunchAlone(ManyRows<T, kCodes>, grid, T::kNumThreads, kRingBytes<T, kCodes>, stream, *batch);
}

// Beyond so many rows tiles are faster, unless they are too few to fill the device: H200,
// docs/performance.md.
constexpr int32_t kMostFewRows = 64;
constexpr int32_t kMostFewRowsBesideHopper = 32;
// Up to here matrices of both kinds share a launch.
constexpr int32_t kMostRowsOfBoth = 16;

int64_t NumTiles(int32_t rows, int64_t outputs, int tile_rows, int tile_outputs) {
  return (int64_t{rows} + tile_rows - 1) / tile_rows *
         ((outputs + tile_outputs - 1) / tile_outputs);
}

int64_t SplitBytes(int32_t rows, int32_t k, bool hopper) {
  constexpr int64_t kGroup = kHopperSplitRows;
  const int64_t kept = hopper ? (rows + kGroup - 1) / kGroup * kGroup : rows;
  return kept * SplitRowBytes(k);
}

bool IsMany(int32_t rows, int64_t outputs, int32_t k, bool codes, const LinearTuning& tuning) {
  if (SplitBytes(rows, k, tuning.hopper) > tuning.split_bytes) return false;
  if (tuning.hopper) {
    const int64_t few_rows_time = (rows + 31) / 32 * outputs;
    return rows > kMostFewRowsBesideHopper &&
           HopperTilesTime(rows, outputs, codes, tuning.num_sms) < few_rows_time;
  }
  return rows > kMostFewRows &&
         NumTiles(rows, outputs, SmallTile::kRows, SmallTile::kOutputs) * 2 >= tuning.num_sms;
}

int64_t NumOutputs(const Batch& batch) {
  int64_t outputs = 0;
  for (int i = 0; i < batch.num_matrices; ++i) outputs += batch.matrices[i].n;
  return outputs;
}

void SplitAhead(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  if (tuning.hopper) return SplitForHopper(batch, tuning.split, stream);
  const LinearMatrix& like = batch->matrices[0];
  auto* const split = static_cast<uint4*>(tuning.split);
  const int64_t pieces = int64_t{batch->num_rows} * like.k / 8;
  Launch(SplitRows, static_cast<unsigned>((pieces + kThreads - 1) / kThreads), kThreads, 0, stream,
         like.x, like.up, pieces, split);
  batch->split = split;
}

template <bool kCodes>
void LaunchTiles(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  if (tuning.hopper) return LaunchHopperTiles(batch, kCodes, tuning.num_sms, stream);
  const int64_t outputs = NumOutputs(*batch);
  const auto fill = [&](int tile_rows, int tile_outputs) {
    return NumTiles(batch->num_rows, outputs, tile_rows, tile_outputs) >= tuning.num_sms * 3 / 4;
  };
  if (kRingBytes<LargeTile, kCodes> <= tuning.shared_bytes &&
      fill(LargeTile::kRows, LargeTile::kOutputs)) {
    return LaunchMany<LargeTile, kCodes>(batch, stream);
  }
  if (fill(MediumTile::kRows, MediumTile::kOutputs)) {
    return LaunchMany<MediumTile, kCodes>(batch, stream);
  }
  LaunchMany<SmallTile, kCodes>(batch, stream);
}

// One CTA for each multiprocessor does, or two do better.
bool IsSmall(int64_t outputs, const LinearTuning& tuning) {
  return outputs <= int64_t{tuning.num_sms} * 16;
}

// Of a multiprocessor: a dozen tiles for each of its CTAs.
constexpr int64_t kManyOutputs = 400;
constexpr int kHeldBlocks = 4;  // of a partition

// By the blocks of a unit. kOfMany: kCtas on a multiprocessor share its registers.
template <int kBlocks>
struct UnitsAhead {
  static constexpr int kHeld = kHeldBlocks / kBlocks;
  static constexpr int kOfFew = 8 / kBlocks;
  static constexpr int kOfMany = kBlocks == 1 ? 3 : 4;
  static constexpr int kCtas = kBlocks == 1 ? 2 : 1;
};

template <typename Source, bool kCodes>
void LaunchOneKind(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  if (batch->split != nullptr) return LaunchTiles<kCodes>(batch, tuning, stream);
  using Ahead = UnitsAhead<Source::kBlocks>;
  const int64_t outputs = NumOutputs(*batch);
  const bool small = IsSmall(outputs, tuning);
  const int32_t rows = batch->num_rows;
  // Of few columns, a warp's part of x stays in its registers.
  const bool fits_registers = batch->matrices[0].k <= kPartitions * kHeldBlocks * kBlock;
  if (rows <= 8 && !kCodes && !small && fits_registers) {
    return LaunchFew<Source, 1, Ahead::kHeld, 1, Rows::kHeld, false>(batch, tuning, stream);
  }
  // Splitting x ahead of all tiles delays the first: one that few tiles follow is split as it goes,
  // if its weights are wide enough to hide that.
  // A block for each warp: few registers, so that what comes next finds room beside it.
  const bool one_block = small && batch->matrices[0].k <= kPartitions * kBlock;
  const bool pays = kCodes || small || outputs >= int64_t{tuning.num_sms} * kManyOutputs;
  if (pays && IsStaged(*batch, tuning)) {
    if (one_block) return LaunchFew<Source, 1, 1, 2, Rows::kStaged, true>(batch, tuning, stream);
    return small
               ? LaunchFew<Source, 1, Ahead::kOfFew, 1, Rows::kStaged, true>(batch, tuning, stream)
               : LaunchFew<Source, 1, Ahead::kOfMany, Ahead::kCtas, Rows::kStaged, true>(
                     batch, tuning, stream);
  }
  if (rows <= 8) {
    if (one_block) return LaunchFew<Source, 1, 1, 2, Rows::kAnew, true>(batch, tuning, stream);
    return small ? LaunchFew<Source, 1, Ahead::kOfFew, 1, Rows::kAnew, true>(batch, tuning, stream)
                 : LaunchFew<Source, 1, Ahead::kOfMany, Ahead::kCtas, Rows::kAnew, false>(
                       batch, tuning, stream);
  }
  if (rows <= 16) {
    if (fits_registers) {
      return LaunchFew<Source, 2, Ahead::kHeld, 1, Rows::kHeld, true>(batch, tuning, stream);
    }
    return LaunchFew<Source, 2, Ahead::kOfFew, 1, Rows::kAnew, true>(batch, tuning, stream);
  }
  LaunchFew<Source, 4, 2, 1, Rows::kAnew, true>(batch, tuning, stream);
}

void LaunchBf16(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  LaunchOneKind<Bf16Source, false>(batch, tuning, stream);
}
void LaunchCodes(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  LaunchOneKind<CodeSource, true>(batch, tuning, stream);
}

void LaunchBothKinds(Batch* batch, const LinearTuning& tuning, cudaStream_t stream) {
  std::stable_partition(batch->matrices, batch->matrices + batch->num_matrices,
                        [](const LinearMatrix& m) { return m.kind == WeightKind::kBf16; });
  batch->num_bf16 = 0;
  while (batch->num_bf16 < batch->num_matrices &&
         batch->matrices[batch->num_bf16].kind == WeightKind::kBf16) {
    ++batch->num_bf16;
  }
  const LinearMatrix& like = batch->matrices[0];
  const bool all_bf16 = batch->num_bf16 == batch->num_matrices;
  const bool small = IsSmall(NumOutputs(*batch), tuning);
  if (tuning.clusters && batch->num_rows <= kMostRowsOfClusters && !small && like.up == nullptr) {
    if (like.k == ClusterOf4096::kInputs &&
        LaunchInClusters<ClusterOf4096>(batch, tuning, stream)) {
      return;
    }
    if (like.k == ClusterOf2048::kInputs && !all_bf16 &&
        LaunchInClusters<ClusterOf2048>(batch, tuning, stream)) {
      return;
    }
  }
  if (all_bf16) return LaunchBf16(batch, tuning, stream);
  if (batch->num_bf16 == 0) return LaunchCodes(batch, tuning, stream);
  if (batch->num_rows <= kMostRowsOfBoth && small) {
    if (IsStaged(*batch, tuning))
      return LaunchFewOfBoth<1, 6, Rows::kStaged>(batch, tuning, stream);
    return batch->num_rows <= 8 ? LaunchFewOfBoth<1, 6, Rows::kAnew>(batch, tuning, stream)
                                : LaunchFewOfBoth<2, 4, Rows::kAnew>(batch, tuning, stream);
  }
  Batch codes = *batch;
  codes.num_matrices = batch->num_matrices - batch->num_bf16;
  std::copy_n(batch->matrices + batch->num_bf16, codes.num_matrices, codes.matrices);
  batch->num_matrices = batch->num_bf16;
  LaunchBf16(batch, tuning, stream);
  LaunchCodes(&codes, tuning, stream);
}

// Matrices that take the same x share a launch.
void LaunchTensorCores(const Batch& all, const LinearTuning& tuning, cudaStream_t stream) {
  bool done[kMaxMatrices] = {};
  for (int first = 0; first < all.num_matrices; ++first) {
    if (done[first]) continue;
    Batch batch = {};
    batch.num_rows = all.num_rows;
    const LinearMatrix& like = all.matrices[first];
    for (int i = first; i < all.num_matrices; ++i) {
      const LinearMatrix& m = all.matrices[i];
      if (done[i] || m.x != like.x || m.k != like.k || m.up != like.up) continue;
      done[i] = true;
      batch.matrices[batch.num_matrices++] = m;
    }
    const bool codes =
        std::any_of(batch.matrices, batch.matrices + batch.num_matrices,
                    [](const LinearMatrix& m) { return m.kind == WeightKind::kInt8; });
    if (IsMany(batch.num_rows, NumOutputs(batch), like.k, codes, tuning)) {
      SplitAhead(&batch, tuning, stream);
    }
    LaunchBothKinds(&batch, tuning, stream);
  }
}

// That a CTA may have.
cudaError_t MostShared(int* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Raises the limit on the shared memory of a kernel for few rows to `most`.
cudaError_t AllowStaged(void (*kernel)(Batch), int most) {
  cudaFuncAttributes attributes = {};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(attributes.sharedSizeBytes));
}

template <typename Source, bool kSwiglu>
cudaError_t AllowStagedOfKind(int most) {
  using Ahead = UnitsAhead<Source::kBlocks>;
  cudaError_t error = AllowStaged(FewRows<Source, 1, 1, 2, Rows::kStaged, kSwiglu>, most);
  if (error == cudaSuccess) {
    error = AllowStaged(FewRows<Source, 1, Ahead::kOfFew, 1, Rows::kStaged, kSwiglu>, most);
  }
  if (error != cudaSuccess) return error;
  return AllowStaged(FewRows<Source, 1, Ahead::kOfMany, Ahead::kCtas, Rows::kStaged, kSwiglu>,
                     most);
}

// Where the device has room for them. How many it runs is asked here, not while a step is recorded.
template <typename C, int kN>
cudaError_t AllowClusters(int most) {
  if (kClusterShared < C, kN >> most) return cudaSuccess;
  const cudaError_t error = AllowStaged(FewRowsByClusters<C, kN>, most);
  if (error == cudaSuccess) MostClusters<C, kN>();
  return error;
}

template <typename T, bool kCodes>
cudaError_t AllowTileOfKind(int most) {
  constexpr int kBytes = kRingBytes<T, kCodes>;
  // A large one may be too large for the device: LaunchTiles leaves it alone.
  if (kBytes > most) return cudaSuccess;
  return cudaFuncSetAttribute(ManyRows<T, kCodes>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kBytes);
}

template <typename T>
cudaError_t AllowTile(int most) {
  const cudaError_t error = AllowTileOfKind<T, false>(most);
  return error == cudaSuccess ? AllowTileOfKind<T, true>(most) : error;
}

}  // namespace

cudaError_t PrepareLinear() {
  int most = 0;
  cudaError_t error = MostShared(&most);
  if (error == cudaSuccess) error = AllowStagedOfKind<Bf16Source, false>(most);
  if (error == cudaSuccess) error = AllowStagedOfKind<Bf16Source, true>(most);
  if (error == cudaSuccess) error = AllowStagedOfKind<CodeSource, false>(most);
  if (error == cudaSuccess) error = AllowStagedOfKind<CodeSource, true>(most);
  if (error == cudaSuccess) error = AllowStaged(FewRowsOfBoth<1, 6, Rows::kStaged>, most);
  if (OverlapAllowed()) {
    if (error == cudaSuccess) error = AllowClusters<ClusterOf2048, 1>(most);
    if (error == cudaSuccess) error = AllowClusters<ClusterOf2048, 2>(most);
    if (error == cudaSuccess) error = AllowClusters<ClusterOf4096, 1>(most);
    if (error == cudaSuccess) error = AllowClusters<ClusterOf4096, 2>(most);
  }
  if (error == cudaSuccess) error = AllowTile<LargeTile>(most);
  if (error == cudaSuccess) error = AllowTile<MediumTile>(most);
  if (error == cudaSuccess) error = AllowTile<SmallTile>(most);
  return error;
}

bool TakesSwiglu(const LinearMatrix& matrix, int32_t num_rows, const LinearTuning& tuning) {
  return FitsTensorCores(matrix) &&
         (IsMany(num_rows, matrix.n, matrix.k, matrix.kind == WeightKind::kInt8, tuning) ||
          (num_rows <= kMostFewRows && IsSmall(matrix.n, tuning)));
}

cudaError_t Linear(const LinearMatrix* matrices, int num_matrices, int32_t num_rows,
                   const LinearTuning& tuning, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  Batch batch = {};
  batch.num_rows = num_rows;
  for (int i = 0; i < num_matrices; ++i) {
    const LinearMatrix& m = matrices[i];
    if (m.n == 0) continue;
    if (FitsTensorCores(m)) {
      batch.matrices[batch.num_matrices++] = m;
      continue;
    }
    const dim3 grid(
        static_cast<unsigned>((m.n + 7) / 8),
        static_cast<unsigned>(std::min((num_rows + kRowsAtOnce - 1) / kRowsAtOnce, 65535)));
    switch (m.kind) {
      case WeightKind::kBf16:
        Launch(AnyShape<uint16_t>, grid, kThreads, 0, stream, m, num_rows);
        break;
      case WeightKind::kInt8:
        Launch(AnyShape<int8_t>, grid, kThreads, 0, stream, m, num_rows);
        break;
      case WeightKind::kF32:
        Launch(AnyShape<float>, grid, kThreads, 0, stream, m, num_rows);
        break;
    }
  }
  LaunchTensorCores(batch, tuning, stream);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
