// One token of every sequence: convolution, gates, recurrence and gated norm at once, with the same
// bits as CausalConv and DeltaNetDecode one after the other.
//
// A CTA takes value heads of a sequence, all of a key head or one of them, and convolves what they
// need, a channel by a thread; 16 warps hold the state of each value head as in
// delta_net_decode.cu. CTAs of the same key head are a cluster: one of them moves its columns of
// the convolution's state on, when all have read them. What the step's kernels do not write is on
// its way before they have ended.
#include "services/trunk/ops/cuda/cluster.cuh"
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

// kHeads value heads a CTA, kCtas CTAs a key head. kAtOnce CTAs share a multiprocessor; 1: none
// does, so that they have all of its way to memory.
template <int kHeads, int kCtas, int kAtOnce>
__global__ void __launch_bounds__(kHeadThreads* kHeads, kAtOnce)
    StepKernel(const StepTables step, const __grid_constant__ ConvLaunch conv,
               const __grid_constant__ DeltaLaunch delta, bool states_settled) {
  constexpr int kRatio = kHeads * kCtas;
  constexpr int kConvolved = 2 + kHeads;  // query, key, values
  LetNextStart();
  const DeltaShape& s = delta.shape;
  const int key_head = static_cast<int>(blockIdx.x) / kCtas;
  const int rank = static_cast<int>(blockIdx.x) % kCtas;
  const int first_head = rank * kHeads;  // of the key head's
  __shared__ float4 partial[kHeads][kWarps][kWarp];
  __shared__ float update[kHeads][kDim];
  __shared__ float heads[kConvolved][kDim];
  __shared__ float gates[2][kHeads];  // log decay, beta
  __shared__ float squares[kHeads][kDim / kWarp];

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int which = static_cast<int>(threadIdx.x) / kHeadThreads;
  const int thread = static_cast<int>(threadIdx.x) % kHeadThreads;
  const int head = key_head * kRatio + first_head + which;
  const int row0 = thread / kWarp * kRows;
  const int col0 = thread % kWarp * 4;
  // The plan lies there since before the step's first kernel.
  const Segment segment = step.segments[blockIdx.y];  // each is one row
  const int64_t row = segment.first_row;
  const bool fresh = segment.first_position == 0;
  float* const state =
      delta.states + (int64_t{segment.slot} * s.num_value_heads + head) * (kDim * kDim);
  if (!states_settled) AwaitOthers();
  float4 cells[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    cells[i] = fresh ? float4{0, 0, 0, 0}
                     : *reinterpret_cast<const float4*>(state + (row0 + i) * kDim + col0);
  }
  const int convolved = static_cast<int>(threadIdx.x) / kDim;
  const int channel = static_cast<int>(threadIdx.x) % kDim;
  const bool convolves = convolved < kConvolved;
  const bool is_value = convolved >= 2;
  const int value_head = first_head + convolved - 2;
  const int column = channel + (is_value ? 2 * s.key_dim + (key_head * kRatio + value_head) * kDim
                                         : convolved * s.key_dim + key_head * kDim);
  float* const history =
      conv.conv_states + int64_t{segment.slot} * (kTaps - 1) * s.conv_dim + column;
  float weights[kTaps];
  float taps[kTaps];
  if (convolves) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      weights[tap] = conv.weight[tap * s.conv_dim + column];
      if (tap + 1 < kTaps) taps[tap] = fresh ? 0.0f : history[tap * s.conv_dim];
    }
  }
  if (states_settled) AwaitOthers();

  const float* const group = conv.qkvz + row * s.qkvz_dim + key_head * s.group_dim;
  if (convolves) {
    taps[kTaps - 1] = group[(is_value ? 2 + value_head : convolved) * kDim + channel];
    float acc = 0;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) acc = fmaf(weights[tap], taps[tap], acc);
    heads[convolved][channel] = Silu(acc);
  } else if (warp == kConvolved * kDim / kWarp && thread % kWarp < kHeads) {
    const int i = thread % kWarp;
    const int h = key_head * kRatio + first_head + i;
    const float* ba = conv.ba + row * 2 * s.num_value_heads + key_head * 2 * kRatio;
    gates[0][i] = LogDecay(conv.neg_decay_rate[h], ba[kRatio + first_head + i], conv.dt_bias[h]);
    gates[1][i] = Sigmoid(ba[first_head + i]);
  }
  float z = 0;
  float weight = 0;
  if (thread < kDim) {
    z = group[(2 + kRatio + first_head + which) * kDim + thread];
    weight = delta.norm_weight[thread];
  }
  __syncthreads();
  if (kCtas > 1) ClusterArrive();
  if (warp < 2) {
    // Query and key. Lanes and order are those of causal_conv.cu.
    const int lane = thread % kWarp;
    float squares_here = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const float value = heads[warp][j * kWarp + lane];
      squares_here = fmaf(value, value, squares_here);
    }
    const float norm =
        ConvNorm(WarpSum(squares_here), warp == 0 ? 1.0f / sqrtf(static_cast<float>(kDim)) : 1.0f);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) heads[warp][j * kWarp + lane] *= norm;
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
  if (kCtas > 1) ClusterWait();
  if (convolves && (is_value || rank == 0)) {
#pragma unroll
    for (int tap = 0; tap + 1 < kTaps; ++tap) history[tap * s.conv_dim] = taps[tap + 1];
  }
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
                         bool states_settled, int32_t num_sms, cudaStream_t stream) {
  if (step.num_recurrent == 0) return cudaSuccess;
  const auto rows = static_cast<unsigned>(step.num_recurrent);
  const auto key_heads = static_cast<unsigned>(delta.shape.num_key_heads);
  if (delta.shape.ratio == 1) {
    Launch(StepKernel<1, 1, 2>, dim3(key_heads, rows), kHeadThreads, 0, stream, step, conv, delta,
           states_settled);
  } else if (OverlapAllowed()) {
    const bool few = 2 * key_heads * rows <= static_cast<unsigned>(num_sms);
    LaunchClusters(few ? StepKernel<1, 2, 1> : StepKernel<1, 2, 2>, 2, dim3(2 * key_heads, rows),
                   kHeadThreads, size_t{0}, stream, step, conv, delta, states_settled);
  } else {
    Launch(StepKernel<2, 1, 1>, dim3(key_heads, rows), 2 * kHeadThreads, 0, stream, step, conv,
           delta, states_settled);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
