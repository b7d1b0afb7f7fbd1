#include <algorithm>

#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/elementwise.h"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;

unsigned Ctas(int64_t count) {
  // A grid-stride loop beyond that: enough CTAs to fill any device.
  return static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 4096));
}

#define BANYAN_GRID_STRIDE(i, count)                             \
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, \
               step = int64_t{gridDim.x} * kThreads;             \
       i < (count); i += step)

template <bool kBf16>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(EmbeddingTable table, const int32_t* token_ids, int64_t count, float* out) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, count) {
    const int64_t row = int64_t{token_ids[i / table.n]} - table.first;
    if (row < 0 || row >= table.rows) {
      out[i] = 0;
      continue;
    }
    const int64_t at = row * table.n + i % table.n;
    out[i] = kBf16 ? Bf16ToFloat(static_cast<const uint16_t*>(table.data)[at])
                   : static_cast<const float*>(table.data)[at];
  }
}

// The same, eight values of bf16 at a time: the table may lie in host memory.
__global__ void __launch_bounds__(kThreads)
    EmbedPiecesKernel(EmbeddingTable table, const int32_t* token_ids, int64_t count, float4* out) {
  BeginKernel();
  const int32_t pieces = table.n / 8;
  BANYAN_GRID_STRIDE(i, count) {
    const int64_t row = int64_t{token_ids[i / pieces]} - table.first;
    uint4 v = {};
    if (row >= 0 && row < table.rows) {
      v = static_cast<const uint4*>(table.data)[row * pieces + i % pieces];
    }
    const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
    const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
    out[2 * i] = {low(v.x), high(v.x), low(v.y), high(v.y)};
    out[2 * i + 1] = {low(v.z), high(v.z), low(v.w), high(v.w)};
  }
}

__global__ void __launch_bounds__(kThreads)
    SwigluKernel(int64_t count, const float* gate, const float* up, float* out) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, count) { out[i] = Silu(gate[i]) * up[i]; }
}

__global__ void __launch_bounds__(kThreads)
    CombineKernel(int64_t count, int32_t n, const float* routed, const float* shared,
                  const float* gate_logit, float* hidden) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, count) {
    hidden[i] += fmaf(Sigmoid(gate_logit[i / n]), shared[i], routed[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    AddKernel(int64_t count, const float* addend, float* hidden) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, count) { hidden[i] += addend[i]; }
}

// Two values at a time; the last one alone where they are odd in number.
__global__ void __launch_bounds__(kThreads)
    RoundKernel(int64_t count, const float* x, uint16_t* out) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, (count + 1) / 2) {
    const int64_t at = 2 * i;
    if (at + 1 < count) {
      const float2 pair = *reinterpret_cast<const float2*>(x + at);
      *reinterpret_cast<uint32_t*>(out + at) = RoundToBf16(pair.x, pair.y);
    } else {
      out[at] = static_cast<uint16_t>(RoundToBf16(x[at], 0));
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    SumPartsKernel(const float* parts, int32_t num_parts, int64_t count, float* out) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, count) {
    float sum = parts[i];
    for (int32_t part = 1; part < num_parts; ++part) sum += parts[part * count + i];
    out[i] = sum;
  }
}

constexpr int kGatheredRows = 256;  // of one launch: they travel as its argument
struct RowList {
  int32_t rows[kGatheredRows];
};

__global__ void __launch_bounds__(kThreads)
    GatherKernel(const __grid_constant__ RowList list, int64_t count, int32_t n, const float* x,
                 float* out) {
  BeginKernel();
  BANYAN_GRID_STRIDE(i, count) { out[i] = x[int64_t{list.rows[i / n]} * n + i % n]; }
}

}  // namespace

cudaError_t Embed(const EmbeddingTable& table, const int32_t* token_ids, int32_t num_rows,
                  float* out, cudaStream_t stream) {
  const int64_t count = int64_t{num_rows} * table.n;
  if (count == 0) return cudaSuccess;
  if (table.bf16 && table.n % 8 == 0) {
    Launch(EmbedPiecesKernel, Ctas(count / 8), kThreads, 0, stream, table, token_ids, count / 8,
           reinterpret_cast<float4*>(out));
  } else if (table.bf16) {
    Launch(EmbedKernel<true>, Ctas(count), kThreads, 0, stream, table, token_ids, count, out);
  } else {
    Launch(EmbedKernel<false>, Ctas(count), kThreads, 0, stream, table, token_ids, count, out);
  }
  return cudaPeekAtLastError();
}

cudaError_t SumParts(const float* parts, int32_t num_parts, int64_t count, float* out,
                     cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  Launch(SumPartsKernel, Ctas(count), kThreads, 0, stream, parts, num_parts, count, out);
  return cudaPeekAtLastError();
}

cudaError_t Swiglu(int64_t count, const float* gate, const float* up, float* out,
                   cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  Launch(SwigluKernel, Ctas(count), kThreads, 0, stream, count, gate, up, out);
  return cudaPeekAtLastError();
}

cudaError_t MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                       const float* gate_logit, float* hidden, cudaStream_t stream) {
  const int64_t count = int64_t{num_rows} * n;
  if (count == 0) return cudaSuccess;
  Launch(CombineKernel, Ctas(count), kThreads, 0, stream, count, n, routed, shared, gate_logit,
         hidden);
  return cudaPeekAtLastError();
}

cudaError_t RoundToBf16(int64_t count, const float* x, uint16_t* out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  Launch(RoundKernel, Ctas((count + 1) / 2), kThreads, 0, stream, count, x, out);
  return cudaPeekAtLastError();
}

cudaError_t AddRows(int64_t count, const float* addend, float* hidden, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  Launch(AddKernel, Ctas(count), kThreads, 0, stream, count, addend, hidden);
  return cudaPeekAtLastError();
}

cudaError_t GatherRows(const int32_t* rows, int32_t num_rows, int32_t n, const float* x, float* out,
                       cudaStream_t stream) {
  for (int32_t first = 0; first < num_rows; first += kGatheredRows) {
    const int32_t some = std::min(num_rows - first, kGatheredRows);
    RowList list = {};
    std::copy_n(rows + first, some, list.rows);
    const int64_t count = int64_t{some} * n;
    Launch(GatherKernel, Ctas(count), kThreads, 0, stream, list, count, n, x,
           out + int64_t{first} * n);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
