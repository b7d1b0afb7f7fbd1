#include "services/trunk/ops/cuda/causal_conv.h"
#include "services/trunk/ops/cuda/conv_math.cuh"
#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPerLane = kMaxDeltaHeadDim / kWarp;
constexpr int kBlockRows = 8;
constexpr int kManyRows = 128;  // from here on in blocks: the device is full then

__device__ void Gates(const ConvLaunch& args, int64_t row) {
  const DeltaShape& s = args.shape;
  for (int h = static_cast<int>(threadIdx.x); h < s.num_value_heads; h += kThreads) {
    // Per key head: b of its value heads, then a.
    const float* group = args.ba + row * 2 * s.num_value_heads + h / s.ratio * 2 * s.ratio;
    args.beta[row * s.num_value_heads + h] = Sigmoid(group[h % s.ratio]);
    args.log_decay[row * s.num_value_heads + h] =
        LogDecay(args.neg_decay_rate[h], group[s.ratio + h % s.ratio], args.dt_bias[h]);
  }
}

// Where a head lies in the packed input and among the output's channels.
struct HeadPlace {
  int width;
  int in_column;
  int channel;
  bool normalize;
  float scale;
};

__device__ __forceinline__ HeadPlace PlaceOf(const DeltaShape& s, int head) {
  if (head >= 2 * s.num_key_heads) {
    const int h = head - 2 * s.num_key_heads;
    return {s.value_head_dim,
            h / s.ratio * s.group_dim + 2 * s.key_head_dim + h % s.ratio * s.value_head_dim,
            2 * s.key_dim + h * s.value_head_dim, false, 1.0f};
  }
  const bool is_key = head >= s.num_key_heads;
  const int key_head = is_key ? head - s.num_key_heads : head;
  return {s.key_head_dim, key_head * s.group_dim + (is_key ? s.key_head_dim : 0),
          head * s.key_head_dim, true,
          is_key ? 1.0f : 1.0f / sqrtf(static_cast<float>(s.key_head_dim))};
}

// Norm and store of what a lane has of a row.
__device__ __forceinline__ void Finish(const HeadPlace& place, float (&out)[kPerLane],
                                       float squares, float* to, int lane) {
  if (place.normalize) {
    const float norm = ConvNorm(WarpSum(squares), place.scale);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) out[j] *= norm;
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j * kWarp + lane < place.width) to[j * kWarp + lane] = out[j];
  }
}

// Rows [first, last) of a segment for one head, and where `owner` the carried state is then moved
// on. kTaps: their number where it is known while compiling, else 0.
template <int kTaps>
__device__ __forceinline__ void Rows(const ConvLaunch& args, const Segment& segment,
                                     const HeadPlace& place, int first, int last, bool owner,
                                     int lane) {
  const DeltaShape& s = args.shape;
  const int history = (kTaps > 0 ? kTaps : s.conv_taps) - 1;
  const int width = place.width;
  const float* in = args.qkvz + int64_t{segment.first_row} * s.qkvz_dim + place.in_column;
  float* state = args.conv_states + int64_t{segment.slot} * history * s.conv_dim + place.channel;
  const bool fresh = segment.first_position == 0;
  // The input of row r of the segment; before it, the carried state, oldest first.
  const auto column = [&](int r, int i) {
    if (r >= 0) return in[int64_t{r} * s.qkvz_dim + i];
    return fresh ? 0.0f : state[int64_t{r + history} * s.conv_dim + i];
  };
  for (int r = first; r < last; ++r) {
    float out[kPerLane];
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = j * kWarp + lane;
      out[j] = 0;
      if (i >= width) continue;
      const float* weight = args.weight + place.channel + i;
      float acc = 0;
      if constexpr (kTaps > 0) {
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          acc = fmaf(weight[tap * s.conv_dim], column(r - history + tap, i), acc);
        }
      } else {
        for (int tap = 0; tap <= history; ++tap) {
          acc = fmaf(weight[int64_t{tap} * s.conv_dim], column(r - history + tap, i), acc);
        }
      }
      out[j] = Silu(acc);
      squares = fmaf(out[j], out[j], squares);
    }
    Finish(place, out, squares,
           args.qkv + (segment.first_row + int64_t{r}) * s.conv_dim + place.channel, lane);
  }
  if (!owner) return;
  if constexpr (kTaps > 0) {
    // All columns are read before one is overwritten, so that the loads do not wait for each other.
    float kept[kPerLane][kTaps];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = j * kWarp + lane;
#pragma unroll
      for (int tap = 0; tap + 1 < kTaps; ++tap) {
        kept[j][tap] = i < width ? column(segment.num_rows - history + tap, i) : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = j * kWarp + lane;
      if (i >= width) continue;
#pragma unroll
      for (int tap = 0; tap + 1 < kTaps; ++tap) state[tap * s.conv_dim + i] = kept[j][tap];
    }
  } else {
    // Ascending: a column that moves within the state comes from a later place.
    for (int j = 0; j < history; ++j) {
      for (int i = lane; i < width; i += kWarp) {
        state[int64_t{j} * s.conv_dim + i] = column(segment.num_rows - history + j, i);
      }
    }
  }
}

// A warp computes one head of one row. That of a segment's first row computes all rows that see the
// carried state and then moves it on: it alone touches it. The last CTA row computes the gates.
template <int kTaps>
__global__ void __launch_bounds__(kThreads, 8)
    ConvKernel(const StepTables step, const ConvLaunch args) {
  BeginKernel();
  const DeltaShape& s = args.shape;
  const int64_t row = blockIdx.x;
  if (blockIdx.y + 1 == gridDim.y) return Gates(args, row);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head =
      static_cast<int>(blockIdx.y) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (head >= 2 * s.num_key_heads + s.num_value_heads) return;
  const Segment segment = step.segments[step.row_segment[row]];
  const int first = static_cast<int>(row) - segment.first_row;
  const int history = (kTaps > 0 ? kTaps : s.conv_taps) - 1;
  if (first > 0 && first < history) return;
  const bool owner = first == 0;
  const int last = owner ? min(max(history, 1), segment.num_rows) : first + 1;
  Rows<kTaps>(args, segment, PlaceOf(s, head), first, last, owner, lane);
}

// The same results for steps of many rows: a warp computes one head of kBlockRows rows and reads
// each of them once, all before it begins. Rows that see the carried state as above.
template <int kTaps>
__global__ void __launch_bounds__(kThreads, 4)
    ConvBlocksKernel(const StepTables step, const ConvLaunch args) {
  BeginKernel();
  const DeltaShape& s = args.shape;
  constexpr int kHistory = kTaps - 1;
  const int begin = static_cast<int>(blockIdx.x) * kBlockRows;
  const int end = min(begin + kBlockRows, step.num_rows);
  if (blockIdx.y + 1 == gridDim.y) {
    for (int row = begin; row < end; ++row) Gates(args, row);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head =
      static_cast<int>(blockIdx.y) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (head >= 2 * s.num_key_heads + s.num_value_heads) return;
  const HeadPlace place = PlaceOf(s, head);
  float weight[kPerLane][kTaps];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = j * kWarp + lane;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      weight[j][tap] = i < place.width ? args.weight[tap * s.conv_dim + place.channel + i] : 0.0f;
    }
  }
  for (int row = begin; row < end;) {
    const Segment segment = step.segments[step.row_segment[row]];
    const int first = row - segment.first_row;
    const int segment_end = segment.first_row + segment.num_rows;
    if (first < kHistory) {
      if (first == 0) {
        Rows<kTaps>(args, segment, place, 0, min(kHistory, segment.num_rows), true, lane);
      }
      row = min(segment.first_row + kHistory, segment_end);
      continue;
    }
    const int count = min(end, segment_end) - row;
    const float* const in = args.qkvz + int64_t{row} * s.qkvz_dim + place.in_column;
    float x[kHistory + kBlockRows][kPerLane];
#pragma unroll
    for (int r = 0; r < kHistory + kBlockRows; ++r) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = j * kWarp + lane;
        x[r][j] = r < kHistory + count && i < place.width
                      ? in[int64_t{r - kHistory} * s.qkvz_dim + i]
                      : 0.0f;
      }
    }
    // All rows at once, those beyond the last as zeros: sums over the warp wait for each other.
    float squares[kBlockRows];
#pragma unroll
    for (int r = 0; r < kBlockRows; ++r) {
      squares[r] = 0;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        float acc = 0;
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) acc = fmaf(weight[j][tap], x[r + tap][j], acc);
        x[r][j] = Silu(acc);
        squares[r] = fmaf(x[r][j], x[r][j], squares[r]);
      }
    }
    if (place.normalize) {
#pragma unroll
      for (int r = 0; r < kBlockRows; ++r) {
        const float norm = ConvNorm(WarpSum(squares[r]), place.scale);
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) x[r][j] *= norm;
      }
    }
    float* const to = args.qkv + int64_t{row} * s.conv_dim + place.channel;
#pragma unroll
    for (int r = 0; r < kBlockRows; ++r) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = j * kWarp + lane;
        if (r < count && i < place.width) to[int64_t{r} * s.conv_dim + i] = x[r][j];
      }
    }
    row += count;
  }
}

}  // namespace

cudaError_t CausalConv(const StepTables& step, const ConvLaunch& args, cudaStream_t stream) {
  if (step.num_rows == 0) return cudaSuccess;
  const int heads = 2 * args.shape.num_key_heads + args.shape.num_value_heads;
  const int per_cta = kThreads / kWarp;
  const bool many = step.num_rows >= kManyRows && args.shape.conv_taps == 4;
  const int blocks = many ? (step.num_rows + kBlockRows - 1) / kBlockRows : step.num_rows;
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>((heads + per_cta - 1) / per_cta + 1));
  if (many) {
    Launch(ConvBlocksKernel<4>, grid, kThreads, 0, stream, step, args);
  } else if (args.shape.conv_taps == 4) {
    Launch(ConvKernel<4>, grid, kThreads, 0, stream, step, args);
  } else {
    Launch(ConvKernel<0>, grid, kThreads, 0, stream, step, args);
  }
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
