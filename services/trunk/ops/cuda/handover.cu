#include <algorithm>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/handover.cuh"
#include "services/trunk/ops/cuda/handover.h"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiecesPerThread = 4;  // 16 bytes each

__device__ __forceinline__ void CopyPieces(const Copy& copy) {
  const auto* from = static_cast<const uint4*>(copy.from);
  auto* to = static_cast<uint4*>(copy.to);
  const int64_t pieces = (copy.bytes + 15) / 16;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pieces;
       i += int64_t{gridDim.x} * kThreads) {
    to[i] = __ldcv(from + i);  // never a copy that a cache kept of host memory
  }
}

__global__ void __launch_bounds__(kThreads)
    HandToHostKernel(const __grid_constant__ HandoverLaunch args) {
  BeginKernel();
  if (args.num_copies > 0) CopyPieces(args.copies[blockIdx.y]);
  RaiseToHost(args.state, args.flags, gridDim.x * gridDim.y);
}

__global__ void __launch_bounds__(kThreads)
    TakeFromHostKernel(const __grid_constant__ HandoverLaunch args) {
  LetNextStart();
  AwaitRelease(args.turn, args.state, args.flags);
  AwaitOthers();
  if (args.num_copies > 0) CopyPieces(args.copies[blockIdx.y]);
}

dim3 Grid(const HandoverLaunch& args) {
  int64_t most = 0;
  for (int i = 0; i < args.num_copies; ++i) most = std::max(most, args.copies[i].bytes);
  const int64_t ctas =
      (most + kThreads * kPiecesPerThread * 16 - 1) / (kThreads * kPiecesPerThread * 16);
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(ctas, 1, 64)),
              static_cast<unsigned>(std::max(1, args.num_copies)));
}

}  // namespace

cudaError_t HandToHost(const HandoverLaunch& args, cudaStream_t stream) {
  Launch(HandToHostKernel, Grid(args), kThreads, 0, stream, args);
  return cudaPeekAtLastError();
}

cudaError_t TakeFromHost(const HandoverLaunch& args, cudaStream_t stream) {
  Launch(TakeFromHostKernel, Grid(args), kThreads, 0, stream, args);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
