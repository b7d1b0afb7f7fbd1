// Convolution and recurrence against a straightforward double-precision reading of model spec 3.4.
#include <algorithm>
#include <cmath>

#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Inputs {
  DeltaNetShape shape;
  std::vector<float> qkvz, ba, weight, neg_decay_rate, dt_bias, norm;
};

struct State {
  std::vector<float> conv, recurrent;
};

// One sequence from its start, in doubles: out [rows, value_dim].
std::vector<double> Oracle(const Inputs& in, int64_t rows) {
  const DeltaNetShape& s = in.shape;
  const int64_t dk = s.key_head_dim, dv = s.value_head_dim, ratio = s.ratio();
  const int64_t group = 2 * dk + 2 * ratio * dv;
  const auto qkvz = [&](int64_t row, int64_t column) -> double {
    return row < 0 ? 0.0 : in.qkvz[static_cast<size_t>(row * s.qkvz_dim() + column)];
  };
  // Convolved value of `channel`, which lies at `column` of the packed projection.
  const auto conv = [&](int64_t row, int64_t channel, int64_t column) {
    double sum = 0;
    for (int64_t j = 0; j < s.conv_taps; ++j) {
      sum += static_cast<double>(in.weight[static_cast<size_t>(j * s.conv_dim() + channel)]) *
             qkvz(row - s.conv_taps + 1 + j, column);
    }
    return sum * Sigmoid(sum);
  };
  std::vector<double> out(static_cast<size_t>(rows * s.value_dim()));
  for (int64_t h = 0; h < s.num_value_heads; ++h) {
    const int64_t g = h / ratio;
    std::vector<double> state(static_cast<size_t>(dk * dv), 0.0);
    for (int64_t row = 0; row < rows; ++row) {
      std::vector<double> q, k, v;
      double qq = 1e-6, kk = 1e-6;
      for (int64_t d = 0; d < dk; ++d) {
        q.push_back(conv(row, g * dk + d, g * group + d));
        k.push_back(conv(row, s.key_dim() + g * dk + d, g * group + dk + d));
        qq += q.back() * q.back();
        kk += k.back() * k.back();
      }
      for (int64_t c = 0; c < dv; ++c) {
        v.push_back(
            conv(row, 2 * s.key_dim() + h * dv + c, g * group + 2 * dk + h % ratio * dv + c));
      }
      const auto ba = [&](int64_t i) -> double {
        return in.ba[static_cast<size_t>(row * 2 * s.num_value_heads + g * 2 * ratio + i)];
      };
      const double beta = Sigmoid(ba(h % ratio));
      const double a = ba(ratio + h % ratio) + in.dt_bias[static_cast<size_t>(h)];
      const double decay =
          std::exp(in.neg_decay_rate[static_cast<size_t>(h)] * std::log1p(std::exp(a)));
      std::vector<double> o(static_cast<size_t>(dv));
      double squares = 0;
      for (int64_t c = 0; c < dv; ++c) {
        double recall = 0;
        for (int64_t d = 0; d < dk; ++d) {
          double& cell = state[static_cast<size_t>(d * dv + c)];
          cell *= decay;
          recall += cell * k[static_cast<size_t>(d)] / std::sqrt(kk);
        }
        const double update = beta * (v[static_cast<size_t>(c)] - recall);
        double sum = 0;
        for (int64_t d = 0; d < dk; ++d) {
          double& cell = state[static_cast<size_t>(d * dv + c)];
          cell += k[static_cast<size_t>(d)] / std::sqrt(kk) * update;
          sum += cell * q[static_cast<size_t>(d)] / std::sqrt(qq) / std::sqrt(dk);
        }
        o[static_cast<size_t>(c)] = sum;
        squares += sum * sum;
      }
      for (int64_t c = 0; c < dv; ++c) {
        const double z = qkvz(row, g * group + 2 * dk + (ratio + h % ratio) * dv + c);
        out[static_cast<size_t>(row * s.value_dim() + h * dv + c)] =
            o[static_cast<size_t>(c)] / std::sqrt(squares / static_cast<double>(dv) + s.eps) *
            in.norm[static_cast<size_t>(c)] * z * Sigmoid(z);
      }
    }
  }
  return out;
}

class DeltaNetTest : public OpsFixture {
 protected:
  Inputs MakeInputs(const DeltaNetShape& shape, int64_t rows) {
    Inputs in;
    in.shape = shape;
    const auto r = static_cast<size_t>(rows);
    const auto heads = static_cast<size_t>(shape.num_value_heads);
    in.qkvz = Random(r * static_cast<size_t>(shape.qkvz_dim()));
    in.ba = Random(r * 2 * heads, 2);
    in.weight = Random(static_cast<size_t>(shape.conv_taps * shape.conv_dim()), 0.5f);
    in.neg_decay_rate = Random(heads);
    for (float& rate : in.neg_decay_rate) rate = -std::exp(rate);
    in.dt_bias = Random(heads);
    in.norm = Random(static_cast<size_t>(shape.value_head_dim));
    return in;
  }

  State MakeState(const DeltaNetShape& shape, int32_t slots) {
    // Leftovers that must not be seen.
    const auto n = static_cast<size_t>(slots);
    return {std::vector<float>(n * static_cast<size_t>(shape.conv_state_floats()), NAN),
            std::vector<float>(n * static_cast<size_t>(shape.state_floats()), NAN)};
  }

  // Rows [begin, end) of the input as one segment of slot 1 at position `begin`.
  static std::vector<float> Run(Backend* backend, const Inputs& in, State* state, int64_t begin,
                                int64_t end, bool chunked) {
    const DeltaNetShape& s = in.shape;
    const auto rows = static_cast<size_t>(end - begin);
    const auto heads = static_cast<size_t>(s.num_value_heads);
    const PlanSegment segments[] = {{.first_row = 0,
                                     .num_rows = static_cast<int32_t>(rows),
                                     .first_position = static_cast<int32_t>(begin),
                                     .slot = 1,
                                     .chunked = chunked}};
    StepPlan plan;
    plan.num_rows = static_cast<int32_t>(rows);
    plan.segments = segments;
    backend->BeginStep(plan);
    std::vector<float> qkv(rows * static_cast<size_t>(s.conv_dim())), log_decay(rows * heads),
        beta(rows * heads), out(rows * static_cast<size_t>(s.value_dim()), NAN);
    const float* qkvz = in.qkvz.data() + begin * s.qkvz_dim();
    backend->CausalConv({.shape = s,
                         .qkvz = qkvz,
                         .ba = in.ba.data() + begin * 2 * s.num_value_heads,
                         .weight = in.weight.data(),
                         .neg_decay_rate = in.neg_decay_rate.data(),
                         .dt_bias = in.dt_bias.data(),
                         .conv_states = state->conv.data(),
                         .qkv = qkv.data(),
                         .log_decay = log_decay.data(),
                         .beta = beta.data()});
    backend->DeltaNet({.shape = s,
                       .qkv = qkv.data(),
                       .qkvz = qkvz,
                       .log_decay = log_decay.data(),
                       .beta = beta.data(),
                       .norm_weight = in.norm.data(),
                       .states = state->recurrent.data(),
                       .out = out.data()});
    return out;
  }

  static OpLimits Limits(const DeltaNetShape& shape) {
    return {.max_rows = 512,
            .max_segments = 4,
            .max_position = 512,
            .attention = {},
            .delta_net = shape};
  }
};

const DeltaNetShape kShapes[] = {
    {.num_key_heads = 2,
     .num_value_heads = 4,
     .key_head_dim = 32,
     .value_head_dim = 32,
     .conv_taps = 4,
     .eps = 1e-6f},
    {.num_key_heads = 1,
     .num_value_heads = 1,
     .key_head_dim = 128,
     .value_head_dim = 128,
     .conv_taps = 4,
     .eps = 1e-6f},
    {.num_key_heads = 1,
     .num_value_heads = 3,
     .key_head_dim = 5,
     .value_head_dim = 19,
     .conv_taps = 2,
     .eps = 1e-6f},
    {.num_key_heads = 2,
     .num_value_heads = 2,
     .key_head_dim = 20,
     .value_head_dim = 70,
     .conv_taps = 7,
     .eps = 1e-6f},
};

TEST_P(DeltaNetTest, BothFormsAgreeWithDoubles) {
  for (const DeltaNetShape& shape : kShapes) {
    for (int64_t rows : {1, 2, 5, 63, 64, 65, 150}) {
      const Inputs in = MakeInputs(shape, rows);
      const std::vector<double> expected = Oracle(in, rows);
      Backend* backend = BackendWithThreads(2);
      ASSERT_TRUE(backend->Reserve(Limits(shape)).ok());
      for (bool chunked : {false, true}) {
        State state = MakeState(shape, 3);
        const std::vector<float> out = Run(backend, in, &state, 0, rows, chunked);
        for (size_t head = 0; head * static_cast<size_t>(shape.value_head_dim) < out.size();
             ++head) {
          const auto width = static_cast<size_t>(shape.value_head_dim);
          double difference = 0, norm = 0;
          for (size_t i = head * width; i < (head + 1) * width; ++i) {
            difference += (out[i] - expected[i]) * (out[i] - expected[i]);
            norm += expected[i] * expected[i];
          }
          // Relative error of a head's output: sums of key_dim terms over a chunk's worth of
          // tokens, magnified where the output before its norm is small against its summands.
          const double bound = 8 * kEps * (shape.key_head_dim + 64);
          ASSERT_LE(std::sqrt(difference), bound * std::sqrt(norm) + 1e-6)
              << (chunked ? "chunked" : "recurrent") << " key_head_dim " << shape.key_head_dim
              << " rows " << rows << " row " << head / static_cast<size_t>(shape.num_value_heads);
        }
      }
    }
  }
}

TEST_P(DeltaNetTest, CutsOnTheGridChangeNoBit) {
  for (const DeltaNetShape& shape : kShapes) {
    const int64_t rows = 150;
    const Inputs in = MakeInputs(shape, rows);
    Backend* backend = BackendWithThreads(1);
    ASSERT_TRUE(backend->Reserve(Limits(shape)).ok());
    for (bool chunked : {false, true}) {
      State whole = MakeState(shape, 3);
      State cut = MakeState(shape, 3);
      const std::vector<float> expected = Run(backend, in, &whole, 0, rows, chunked);
      std::vector<float> out;
      const std::vector<int64_t> cuts = chunked ? std::vector<int64_t>{0, 64, 128, rows}
                                                : std::vector<int64_t>{0, 1, 2, 3, 50, 149, rows};
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        const std::vector<float> part = Run(backend, in, &cut, cuts[i], cuts[i + 1], chunked);
        out.insert(out.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(SameBits(out, expected));
      // Slot 1's states agree; slots 0 and 2 hold what they held.
      EXPECT_TRUE(SameBits(cut.conv, whole.conv));
      EXPECT_TRUE(SameBits(cut.recurrent, whole.recurrent));
      EXPECT_TRUE(std::isnan(cut.recurrent.front()) && std::isnan(cut.recurrent.back()));
      EXPECT_TRUE(std::isnan(cut.conv.front()) && std::isnan(cut.conv.back()));
    }
  }
}

BANYAN_FOR_ALL_BACKENDS(DeltaNetTest);

}  // namespace
}  // namespace banyan::trunk
