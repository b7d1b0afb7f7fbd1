#include <cuda_fp16.h>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/host_experts.h"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

// A warp decodes a chunk: 16 outputs by 64 inputs (docs/formats/expert_pack.md).
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kOutputs = static_cast<int>(kPanelOutputs);

__device__ __forceinline__ uint32_t ByteOf(uint32_t word, int i) { return (word >> (8 * i)) & 255; }

// Lane 4 p + q: inputs 8 q to 8 q + 7 of both halves of the chunk, of outputs 2 p and 2 p + 1.
__device__ __forceinline__ void DecodeNf4(const unsigned char* chunk, int lane, const float* table,
                                          uint16_t* out, int64_t stride) {
  const int pair = lane / 4;
  const int q = lane % 4;
  const uint4 codes = *reinterpret_cast<const uint4*>(chunk + pair * 64 + q * 16);
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  const auto* const scales = reinterpret_cast<const float*>(chunk + 512);
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int output = 2 * pair + odd;
    const float scale = scales[output];
    uint32_t low[4];
    uint32_t high[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t a = ByteOf(words[i], odd);
      const uint32_t b = ByteOf(words[i], 2 + odd);
      low[i] = PackBf16(table[a & 15] * scale, table[b & 15] * scale);
      high[i] = PackBf16(table[a >> 4] * scale, table[b >> 4] * scale);
    }
    uint16_t* const row = out + output * stride + q * 8;
    *reinterpret_cast<uint4*>(row) = {low[0], low[1], low[2], low[3]};
    *reinterpret_cast<uint4*>(row + 32) = {high[0], high[1], high[2], high[3]};
  }
}

// Lane 16 h + o: half h of output o, a group with one scale. kInt4: a byte has an input of two
// quads one behind the other.
template <bool kInt4>
__device__ __forceinline__ void DecodeInt(const unsigned char* chunk, int lane, uint16_t* out,
                                          int64_t stride) {
  constexpr int kScalesAt = kInt4 ? 512 : 1024;
  const int output = lane % kOutputs;
  const int half = lane / kOutputs;
  const float scale =
      __half2float(reinterpret_cast<const __half*>(chunk + kScalesAt)[half * kOutputs + output]);
  uint16_t* const row = out + output * stride + half * 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // eight inputs each
    uint32_t packed[4];
    if (kInt4) {
      const uint32_t word =
          *reinterpret_cast<const uint32_t*>(chunk + (half * 4 + i) * 64 + output * 4);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t codes = k < 2 ? word & 0x0f0f0f0fu : (word >> 4) & 0x0f0f0f0fu;
        const float a = static_cast<float>(static_cast<int>(ByteOf(codes, k % 2 * 2)) - 8);
        const float b = static_cast<float>(static_cast<int>(ByteOf(codes, k % 2 * 2 + 1)) - 8);
        packed[k] = PackBf16(scale * a, scale * b);
      }
    } else {
#pragma unroll
      for (int quad = 0; quad < 2; ++quad) {
        const uint32_t codes =
            *reinterpret_cast<const uint32_t*>(chunk + (half * 8 + i * 2 + quad) * 64 + output * 4);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float a = static_cast<float>(static_cast<int>(ByteOf(codes, k * 2)) - 128);
          const float b = static_cast<float>(static_cast<int>(ByteOf(codes, k * 2 + 1)) - 128);
          packed[quad * 2 + k] = PackBf16(scale * a, scale * b);
        }
      }
    }
    *reinterpret_cast<uint4*>(row + i * 8) = {packed[0], packed[1], packed[2], packed[3]};
  }
}

template <PoolFormat kFormat>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(const __grid_constant__ DecodeLaunch args) {
  constexpr int64_t kChunkBytes = kFormat == PoolFormat::kInt8 ? 1088 : 576;
  __shared__ float table[16];
  if (kFormat == PoolFormat::kNF4) {
    if (threadIdx.x < 16) table[threadIdx.x] = args.nf4_table[threadIdx.x];
    __syncthreads();
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int chunk = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  int which = 0;
  while (which < 3 && chunk >= args.matrices[which].panels * args.matrices[which].chunks) {
    chunk -= args.matrices[which].panels * args.matrices[which].chunks;
    ++which;
  }
  if (which == 3) return;
  const DecodeMatrix& matrix = args.matrices[which];
  const unsigned char* const from = args.experts[blockIdx.y] + matrix.from + chunk * kChunkBytes;
  const int64_t stride = int64_t{matrix.chunks} * kChunkInputs;
  uint16_t* const to = args.decoded[blockIdx.y] + matrix.to +
                       chunk / matrix.chunks * kPanelOutputs * stride +
                       chunk % matrix.chunks * kChunkInputs;
  if (kFormat == PoolFormat::kNF4) {
    DecodeNf4(from, lane, table, to, stride);
  } else {
    DecodeInt<kFormat == PoolFormat::kInt4>(from, lane, to, stride);
  }
}

}  // namespace

cudaError_t DecodeExperts(const DecodeLaunch& args, cudaStream_t stream) {
  if (args.num_experts == 0) return cudaSuccess;
  int chunks = 0;
  for (const DecodeMatrix& matrix : args.matrices) chunks += matrix.panels * matrix.chunks;
  const dim3 grid(static_cast<unsigned>((chunks + kWarps - 1) / kWarps),
                  static_cast<unsigned>(args.num_experts));
  switch (args.format) {
    case PoolFormat::kInt8:
      return LaunchAlone(DecodeKernel<PoolFormat::kInt8>, grid, kThreads, 0, stream, args);
    case PoolFormat::kNF4:
      return LaunchAlone(DecodeKernel<PoolFormat::kNF4>, grid, kThreads, 0, stream, args);
    case PoolFormat::kInt4:
      return LaunchAlone(DecodeKernel<PoolFormat::kInt4>, grid, kThreads, 0, stream, args);
    case PoolFormat::kBF16:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace banyan::trunk::cuda
