#include "services/trunk/ops/cpu/delta_net.h"

#include <cmath>

namespace banyan::trunk::cpu {
namespace {

// log(1 + e^x); the identity where e^-x no longer shows in f32.
float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

float SigmoidOf(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Decay and write strength of all value heads for a segment's rows.
void Gates(const CausalConvArgs& args, const PlanSegment& segment) {
  const int32_t heads = args.shape.num_value_heads;
  const int32_t ratio = args.shape.ratio();
  for (int32_t row = segment.first_row; row < segment.first_row + segment.num_rows; ++row) {
    const float* ba = args.ba + int64_t{row} * 2 * heads;
    for (int32_t h = 0; h < heads; ++h) {
      const float* group = ba + h / ratio * 2 * ratio;  // b of its heads, then a
      const float b = group[h % ratio];
      const float a = group[ratio + h % ratio];
      args.beta[int64_t{row} * heads + h] = SigmoidOf(b);
      args.log_decay[int64_t{row} * heads + h] =
          args.neg_decay_rate[h] * Softplus(a + args.dt_bias[h]);
    }
  }
}

}  // namespace

void CausalConv(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
                const CausalConvArgs& args) {
  const DeltaNetShape& s = args.shape;
  const int64_t ratio = s.ratio();
  const int64_t group = 2 * s.key_head_dim + 2 * ratio * s.value_head_dim;
  const int64_t heads = 2 * s.num_key_heads + s.num_value_heads;
  // Tiles of a segment: its gates, q heads, k heads, v heads.
  const int64_t tiles = heads + 1;
  // An exponential costs as much as ten multiply-adds.
  const int64_t cost = int64_t{plan.num_rows} * s.conv_dim() * (s.conv_taps + 12);
  const auto num_segments = static_cast<int64_t>(plan.segments.size());
  parallel.For(num_segments * tiles, cost, [&](int64_t tile, int) {
    const PlanSegment& segment = plan.segments[static_cast<size_t>(tile / tiles)];
    int64_t head = tile % tiles - 1;
    if (head < 0) return Gates(args, segment);
    ConvHead conv;
    int64_t in_column = 0;
    int64_t channel = 0;
    if (head < 2 * s.num_key_heads) {
      const bool is_key = head >= s.num_key_heads;
      const int64_t g = is_key ? head - s.num_key_heads : head;
      conv.width = s.key_head_dim;
      conv.normalize = true;
      conv.scale = is_key ? 1.0f : 1.0f / std::sqrt(static_cast<float>(s.key_head_dim));
      in_column = g * group + (is_key ? s.key_head_dim : 0);
      channel = head * s.key_head_dim;
    } else {
      const int64_t h = head - 2 * s.num_key_heads;
      conv.width = s.value_head_dim;
      in_column = h / ratio * group + 2 * s.key_head_dim + h % ratio * s.value_head_dim;
      channel = 2 * s.key_dim() + h * s.value_head_dim;
    }
    const int64_t row = segment.first_row;
    conv.in = args.qkvz + row * s.qkvz_dim() + in_column;
    conv.ld_in = s.qkvz_dim();
    conv.num_rows = segment.num_rows;
    conv.taps = s.conv_taps;
    conv.weight = args.weight + channel;
    conv.state = args.conv_states + segment.slot * s.conv_state_floats() + channel;
    conv.ld_channels = s.conv_dim();
    conv.fresh = segment.first_position == 0;
    conv.out = args.qkv + row * s.conv_dim() + channel;
    conv.ld_out = s.conv_dim();
    kernels.conv_head(conv);
  });
}

void DeltaNet(const KernelTable& kernels, const Parallel& parallel, const StepPlan& plan,
              const DeltaNetArgs& args, float* scratch, int64_t scratch_stride) {
  const DeltaNetShape& s = args.shape;
  const int64_t ratio = s.ratio();
  const int64_t group = 2 * s.key_head_dim + 2 * ratio * s.value_head_dim;
  const int64_t heads = s.num_value_heads;
  const int64_t cost = plan.num_rows * s.state_floats() * 4;
  const auto num_segments = static_cast<int64_t>(plan.segments.size());
  parallel.For(num_segments * heads, cost, [&](int64_t tile, int thread) {
    const PlanSegment& segment = plan.segments[static_cast<size_t>(tile / heads)];
    const int64_t h = tile % heads;
    const int64_t g = h / ratio;
    const int64_t row = segment.first_row;
    const float* qkv = args.qkv + row * s.conv_dim();
    const int64_t z_column =
        g * group + 2 * s.key_head_dim + (ratio + h % ratio) * s.value_head_dim;
    const DeltaHead head = {
        .q = qkv + g * s.key_head_dim,
        .k = qkv + s.key_dim() + g * s.key_head_dim,
        .v = qkv + 2 * s.key_dim() + h * s.value_head_dim,
        .ld_qkv = s.conv_dim(),
        .log_decay = args.log_decay + row * heads + h,
        .beta = args.beta + row * heads + h,
        .ld_gates = heads,
        .z = args.qkvz + row * s.qkvz_dim() + z_column,
        .ld_z = s.qkvz_dim(),
        .norm_weight = args.norm_weight,
        .eps = s.eps,
        .state =
            args.states + segment.slot * s.state_floats() + h * s.key_head_dim * s.value_head_dim,
        .fresh = segment.first_position == 0,
        .num_rows = segment.num_rows,
        .key_dim = s.key_head_dim,
        .value_dim = s.value_head_dim,
        .out = args.out + row * s.value_dim() + h * s.value_head_dim,
        .ld_out = s.value_dim(),
        .scratch = scratch + thread * scratch_stride,
    };
    if (segment.chunked) {
      kernels.delta_prefill(head);
    } else {
      kernels.delta_decode(head);
    }
  });
}

}  // namespace banyan::trunk::cpu
