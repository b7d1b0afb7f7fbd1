// One token of every sequence: convolution, gates, recurrence and gated norm at once, with the same
// bits as CausalConv and DeltaNetDecode one after the other.
//
// A CTA takes a key head of a sequence and its value heads: it alone touches their columns of the
// convolution's state. Four warps or three convolve while the recurrent state is on its way; then
// 16 warps hold the state of each value head as in delta_net_decode.cu.
#include "services/trunk/ops/cuda/conv_math.cuh"
#include "services/trunk/ops/cuda/delta_net_step.h"
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kWarps = 16;  // of a value head
constexpr int kHeadThreads = kWarps * kWarp;
constexpr int kDim = kMaxDeltaHeadDim;  // of keys and values
constexpr int kRows = kDim / kWarps;    // of one thread
constexpr int kPerLane = kDim / kWarp;
constexpr int kTaps = 4;
static_assert(kPerLane == 4);

// One row of 128 channels through the convolution, by a warp: normalised where that is asked for,
// and the state moved on.
__device__ __forceinline__ void ConvolveHead(const ConvLaunch& args, const float* in, int channel,
                                             float* state, bool fresh, bool normalize, float scale,
                                             float* to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int conv_dim = args.shape.conv_dim;
  float columns[kPerLane][kTaps];
  float weights[kPerLane][kTaps];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = j * kWarp + lane;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      weights[j][tap] = args.weight[tap * conv_dim + channel + i];
      columns[j][tap] = tap + 1 == kTaps ? in[i] : (fresh ? 0.0f : state[tap * conv_dim + i]);
    }
  }
  float out[kPerLane];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    float acc = 0;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) acc = fmaf(weights[j][tap], columns[j][tap], acc);
    out[j] = Silu(acc);
    squares = fmaf(out[j], out[j], squares);
  }
  if (normalize) {
    const float norm = ConvNorm(WarpSum(squares), scale);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) out[j] *= norm;
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = j * kWarp + lane;
    to[i] = out[j];
#pragma unroll
    for (int tap = 0; tap + 1 < kTaps; ++tap) state[tap * conv_dim + i] = columns[j][tap + 1];
  }
}

template <int kRatio>
__global__ void __launch_bounds__(kHeadThreads* kRatio)
    StepKernel(const StepTables step, const __grid_constant__ ConvLaunch conv,
               const __grid_constant__ DeltaLaunch delta) {
  LetNextStart();
  const DeltaShape& s = delta.shape;
  const int key_head = static_cast<int>(blockIdx.x);
  __shared__ float4 partial[kRatio][kWarps][kWarp];
  __shared__ float update[kRatio][kDim];
  __shared__ float heads[2 + kRatio][kDim];  // query, key, values
  __shared__ float gates[2][kRatio];         // log decay, beta
  __shared__ float squares[kRatio][kDim / kWarp];

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int which = static_cast<int>(threadIdx.x) / kHeadThreads;
  const int thread = static_cast<int>(threadIdx.x) % kHeadThreads;
  const int head = key_head * kRatio + which;
  const int row0 = thread / kWarp * kRows;
  const int col0 = thread % kWarp * 4;
  // The plan lies there since before the step's first kernel.
  const Segment segment = step.segments[step.recurrent[blockIdx.y]];
  const int64_t row = segment.first_row;
  const bool fresh = segment.first_position == 0;
  float* const state =
      delta.states + (int64_t{segment.slot} * s.num_value_heads + head) * (kDim * kDim);
  // On its way to the second-level cache, whoever may still write it.
  if (!fresh) asm volatile("prefetch.global.L2 [%0];" ::"l"(state + thread * 32));
  AwaitOthers();

  if (warp < 2 + kRatio) {
    const int group = key_head * s.group_dim;
    const bool is_value = warp >= 2;
    const int channel = is_value ? 2 * s.key_dim + (key_head * kRatio + warp - 2) * kDim
                                 : warp * s.key_dim + key_head * kDim;
    ConvolveHead(conv, conv.qkvz + row * s.qkvz_dim + group + warp * kDim, channel,
                 conv.conv_states + int64_t{segment.slot} * (kTaps - 1) * s.conv_dim + channel,
                 fresh, !is_value, warp == 0 ? 1.0f / sqrtf(static_cast<float>(kDim)) : 1.0f,
                 heads[warp]);
  } else if (warp == 2 + kRatio && thread % kWarp < kRatio) {
    const int i = thread % kWarp;
    const int h = key_head * kRatio + i;
    const float* group = conv.ba + row * 2 * s.num_value_heads + key_head * 2 * kRatio;
    gates[0][i] = LogDecay(conv.neg_decay_rate[h], group[kRatio + i], conv.dt_bias[h]);
    gates[1][i] = Sigmoid(group[i]);
  }
  // After the convolution, whose warps have no registers for both; the others need not wait.
  float4 cells[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    cells[i] = fresh ? float4{0, 0, 0, 0}
                     : *reinterpret_cast<const float4*>(state + (row0 + i) * kDim + col0);
  }
  float z = 0;
  float weight = 0;
  if (thread < kDim) {
    z = delta
            .qkvz[row * s.qkvz_dim + key_head * s.group_dim + (2 + kRatio + which) * kDim + thread];
    weight = delta.norm_weight[thread];
  }
  __syncthreads();

  const float decay = expf(gates[0][which]);
  float4 sum = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float k = heads[1][row0 + i];
    sum.x = fmaf(k, cells[i].x, sum.x);
    sum.y = fmaf(k, cells[i].y, sum.y);
    sum.z = fmaf(k, cells[i].z, sum.z);
    sum.w = fmaf(k, cells[i].w, sum.w);
  }
  partial[which][thread / kWarp][thread % kWarp] = sum;
  __syncthreads();
  if (thread < kDim) {
    float recall = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      recall += reinterpret_cast<const float*>(partial[which][w])[thread];
    }
    update[which][thread] = gates[1][which] * fmaf(-decay, recall, heads[2 + which][thread]);
  }
  __syncthreads();
  const float4 u = *reinterpret_cast<const float4*>(&update[which][col0]);
  sum = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float k = heads[1][row0 + i];
    const float q = heads[0][row0 + i];
    cells[i].x = fmaf(k, u.x, decay * cells[i].x);
    cells[i].y = fmaf(k, u.y, decay * cells[i].y);
    cells[i].z = fmaf(k, u.z, decay * cells[i].z);
    cells[i].w = fmaf(k, u.w, decay * cells[i].w);
    sum.x = fmaf(q, cells[i].x, sum.x);
    sum.y = fmaf(q, cells[i].y, sum.y);
    sum.z = fmaf(q, cells[i].z, sum.z);
    sum.w = fmaf(q, cells[i].w, sum.w);
  }
  partial[which][thread / kWarp][thread % kWarp] = sum;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    *reinterpret_cast<float4*>(state + (row0 + i) * kDim + col0) = cells[i];
  }
  __syncthreads();
  float out = 0;
  if (thread < kDim) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      out += reinterpret_cast<const float*>(partial[which][w])[thread];
    }
    const float square = WarpSum(out * out);
    if (thread % kWarp == 0) squares[which][thread / kWarp] = square;
  }
  __syncthreads();
  if (thread >= kDim) return;
  float mean = 0;
#pragma unroll
  for (int w = 0; w < kDim / kWarp; ++w) mean += squares[which][w];
  const float scale = 1.0f / sqrtf(mean / static_cast<float>(kDim) + s.eps);
  delta.out[row * s.value_dim + head * kDim + thread] = out * scale * weight * Silu(z);
}

}  // namespace

bool TakesDeltaNetStep(const StepTables& step, const DeltaShape& shape) {
  return step.num_chunked == 0 && step.num_recurrent == step.num_rows && shape.conv_taps == kTaps &&
         shape.key_head_dim == kDim && shape.value_head_dim == kDim && shape.ratio <= 2;
}

cudaError_t DeltaNetStep(const StepTables& step, const ConvLaunch& conv, const DeltaLaunch& delta,
                         cudaStream_t stream) {
  if (step.num_recurrent == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(delta.shape.num_key_heads),
                  static_cast<unsigned>(step.num_recurrent));
  if (delta.shape.ratio == 1) {
    Launch(StepKernel<1>, grid, kHeadThreads, 0, stream, step, conv, delta);
  } else {
    Launch(StepKernel<2>, grid, 2 * kHeadThreads, 0, stream, step, conv, delta);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
