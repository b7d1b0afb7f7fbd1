// Norm, rotation, cache and attention against double-precision softmax over the whole context.
#include <algorithm>
#include <cmath>

#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

struct Rows {
  std::vector<float> q_gate, k, v;
};

class PagedAttentionTest : public OpsFixture {
 protected:
  static constexpr int32_t kPages = 40;

  void Start(const AttentionShape& shape, int32_t rows) {
    shape_ = shape;
    const auto r = static_cast<size_t>(rows);
    const auto dim = static_cast<size_t>(shape.head_dim);
    rows_ = {Random(r * static_cast<size_t>(shape.num_heads) * 2 * dim),
             Random(r * static_cast<size_t>(shape.num_kv_heads) * dim),
             Random(r * static_cast<size_t>(shape.num_kv_heads) * dim)};
    q_norm_ = Random(dim, 0.1f);
    k_norm_ = Random(dim, 0.1f);
    page_ids_.clear();
    for (int32_t i = 0; i < kPages; ++i) page_ids_.push_back((i * 7 + 3) % kPages);
    ClearPages();
  }

  // Leftovers of other sequences: if they were multiplied in, even by zero, it would show.
  void ClearPages() {
    const auto floats = static_cast<size_t>(shape_.num_kv_heads) *
                        static_cast<size_t>(shape_.head_dim) * kOpsPageTokens * kPages;
    keys_.assign(floats, NAN);
    values_.assign(floats, NAN);
  }

  static double Angle(int64_t position, int64_t i, int32_t rotary_dim) {
    return static_cast<double>(position) *
           std::pow(1e7, -2.0 * static_cast<double>(i) / rotary_dim);
  }

  // Rows [begin, end) of the sequence as one segment.
  std::vector<float> Run(Backend* backend, int32_t begin, int32_t end) {
    const int32_t half = shape_.rotary_dim / 2;
    const auto rows = static_cast<size_t>(end - begin);
    std::vector<int32_t> positions;
    std::vector<float> cos, sin;
    for (int32_t p = begin; p < end; ++p) {
      positions.push_back(p);
      for (int32_t i = 0; i < half; ++i) {
        cos.push_back(static_cast<float>(std::cos(Angle(p, i, shape_.rotary_dim))));
        sin.push_back(static_cast<float>(std::sin(Angle(p, i, shape_.rotary_dim))));
      }
    }
    const PlanSegment segments[] = {{.first_row = 0,
                                     .num_rows = end - begin,
                                     .first_position = begin,
                                     .slot = 0,
                                     .first_page = 0}};
    StepPlan plan;
    plan.num_rows = end - begin;
    plan.segments = segments;
    plan.positions = positions;
    plan.page_ids = page_ids_;
    plan.rope_cos = cos;
    plan.rope_sin = sin;
    backend->BeginStep(plan);
    const int64_t q_floats = int64_t{shape_.num_heads} * 2 * shape_.head_dim;
    const int64_t kv_floats = int64_t{shape_.num_kv_heads} * shape_.head_dim;
    std::vector<float> q(rows_.q_gate.begin() + begin * q_floats,
                         rows_.q_gate.begin() + end * q_floats);
    std::vector<float> k(rows_.k.begin() + begin * kv_floats, rows_.k.begin() + end * kv_floats);
    std::vector<float> out(rows * static_cast<size_t>(q_floats / 2), NAN);
    const AttentionArgs args = {.shape = shape_,
                                .q_gate = q.data(),
                                .k = k.data(),
                                .v = rows_.v.data() + begin * kv_floats,
                                .q_norm = q_norm_.data(),
                                .k_norm = k_norm_.data(),
                                .key_pages = keys_.data(),
                                .value_pages = values_.data(),
                                .out = out.data()};
    backend->PrepareAttention(args);
    backend->PagedAttention(args);
    return out;
  }

  std::vector<double> NormAndRotate(const float* x, const std::vector<float>& weight,
                                    int64_t position) const {
    const auto dim = static_cast<size_t>(shape_.head_dim);
    double squares = 0;
    for (size_t i = 0; i < dim; ++i) squares += static_cast<double>(x[i]) * x[i];
    std::vector<double> y(dim);
    for (size_t i = 0; i < dim; ++i) {
      y[i] = x[i] / std::sqrt(squares / static_cast<double>(dim) + shape_.eps) * (1.0 + weight[i]);
    }
    const auto half = static_cast<size_t>(shape_.rotary_dim / 2);
    for (size_t i = 0; i < half; ++i) {
      const double angle = Angle(position, static_cast<int64_t>(i), shape_.rotary_dim);
      const double a = y[i], b = y[i + half];
      y[i] = a * std::cos(angle) - b * std::sin(angle);
      y[i + half] = b * std::cos(angle) + a * std::sin(angle);
    }
    return y;
  }

  // Row `row` of the output, head by head.
  std::vector<double> Oracle(int64_t row) const {
    const int64_t dim = shape_.head_dim;
    const int64_t ratio = shape_.num_heads / shape_.num_kv_heads;
    std::vector<double> out;
    for (int64_t h = 0; h < shape_.num_heads; ++h) {
      const float* q_gate = rows_.q_gate.data() + (row * shape_.num_heads + h) * 2 * dim;
      const std::vector<double> q = NormAndRotate(q_gate, q_norm_, row);
      std::vector<double> scores;
      for (int64_t j = 0; j <= row; ++j) {
        const int64_t at = (j * shape_.num_kv_heads + h / ratio) * dim;
        const std::vector<double> k = NormAndRotate(rows_.k.data() + at, k_norm_, j);
        double dot = 0;
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) dot += q[d] * k[d];
        scores.push_back(dot / std::sqrt(static_cast<double>(dim)));
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& score : scores) sum += score = std::exp(score - max);
      for (int64_t d = 0; d < dim; ++d) {
        double o = 0;
        for (int64_t j = 0; j <= row; ++j) {
          o += scores[static_cast<size_t>(j)] *
               rows_.v[static_cast<size_t>((j * shape_.num_kv_heads + h / ratio) * dim + d)];
        }
        out.push_back(o / sum / (1 + std::exp(-static_cast<double>(q_gate[dim + d]))));
      }
    }
    return out;
  }

  // Two factors are split: scores lose that of sqrt(head_dim) in size, which weighs values below
  // five, and the weighted sum of these the same again.
  static double AttentionLoss(int32_t head_dim) {
    return 2 * SplitLoss() * (2 * std::sqrt(head_dim) + 1) * 5;
  }

  OpLimits Limits() const {
    return {.max_rows = 1300,
            .max_segments = 4,
            .max_position = 2560,
            .attention = shape_,
            .delta_net = {}};
  }

  AttentionShape shape_;
  Rows rows_;
  std::vector<float> q_norm_, k_norm_, keys_, values_;
  std::vector<int32_t> page_ids_;
};

const AttentionShape kShapes[] = {
    {.num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .rotary_dim = 16, .eps = 1e-6f},
    {.num_heads = 8, .num_kv_heads = 1, .head_dim = 256, .rotary_dim = 64, .eps = 1e-6f},
    {.num_heads = 3, .num_kv_heads = 3, .head_dim = 10, .rotary_dim = 10, .eps = 1e-6f},
    {.num_heads = 70, .num_kv_heads = 1, .head_dim = 6, .rotary_dim = 2, .eps = 1e-6f},
};

TEST_P(PagedAttentionTest, AgreesWithDoubles) {
  for (const AttentionShape& shape : kShapes) {
    Start(shape, 131);
    Backend* backend = BackendWithThreads(2);
    ASSERT_TRUE(backend->Reserve(Limits()).ok());
    const std::vector<float> out = Run(backend, 0, 131);
    const auto width = static_cast<size_t>(shape.num_heads * shape.head_dim);
    for (int64_t row : {0, 1, 15, 16, 63, 64, 100, 127, 128, 130}) {
      const std::vector<double> expected = Oracle(row);
      for (size_t i = 0; i < width; ++i) {
        // Scores up to sqrt(head_dim) in size carry head_dim roundings; values are below five.
        const double bound = 8 * kEps * shape.head_dim * std::sqrt(shape.head_dim);
        ASSERT_NEAR(out[static_cast<size_t>(row) * width + i], expected[i],
                    bound + 4e-6 + AttentionLoss(shape.head_dim))
            << "row " << row << " head " << i / static_cast<size_t>(shape.head_dim) << " head_dim "
            << shape.head_dim;
      }
    }
  }
}

TEST_P(PagedAttentionTest, PrefillAndDecodeGiveTheSameBits) {
  for (const AttentionShape& shape : kShapes) {
    Start(shape, 200);
    Backend* backend = BackendWithThreads(1);
    ASSERT_TRUE(backend->Reserve(Limits()).ok());
    const std::vector<float> expected = Run(backend, 0, 200);
    ClearPages();
    std::vector<float> out;
    for (const auto& [begin, end] : {std::pair<int32_t, int32_t>{0, 1},
                                     {1, 2},
                                     {2, 70},
                                     {70, 71},
                                     {71, 72},
                                     {72, 127},
                                     {127, 129},
                                     {129, 200}}) {
      const std::vector<float> part = Run(backend, begin, end);
      out.insert(out.end(), part.begin(), part.end());
    }
    EXPECT_TRUE(SameBits(out, expected)) << "head_dim " << shape.head_dim;
  }
}

TEST_P(PagedAttentionTest, PartitionsAcrossThreads) {
  Start(kShapes[0], 2100);
  Backend* one = BackendWithThreads(1);
  Backend* four = BackendWithThreads(4);
  ASSERT_TRUE(one->Reserve(Limits()).ok());
  ASSERT_TRUE(four->Reserve(Limits()).ok());
  Run(one, 0, 1030);
  Run(one, 1030, 2090);
  const std::vector<float> expected = Run(one, 2090, 2100);
  EXPECT_TRUE(SameBits(Run(four, 2090, 2100), expected));
  // One row: partitions are shared between threads.
  const std::vector<float> last = Run(four, 2099, 2100);
  const size_t width = last.size();
  EXPECT_TRUE(SameBits(last, {expected.end() - static_cast<int64_t>(width), expected.end()}));
  const std::vector<double> oracle = Oracle(2099);
  for (size_t i = 0; i < width; ++i) {
    ASSERT_NEAR(last[i], oracle[i], 2e-5 + AttentionLoss(shape_.head_dim));
  }
}

// Enough heads and rows that a GPU takes the way of long prompts.
TEST_P(PagedAttentionTest, LongPromptsAndDecodeGiveTheSameBits) {
  Start({.num_heads = 16, .num_kv_heads = 2, .head_dim = 256, .rotary_dim = 64, .eps = 1e-6f}, 700);
  Backend* backend = BackendWithThreads(2);
  ASSERT_TRUE(backend->Reserve(Limits()).ok());
  const std::vector<float> expected = Run(backend, 0, 700);
  const size_t width = expected.size() / 700;
  ClearPages();
  Run(backend, 0, 600);
  std::vector<float> out = Run(backend, 600, 690);
  const std::vector<float> last = Run(backend, 690, 700);
  out.insert(out.end(), last.begin(), last.end());
  EXPECT_TRUE(SameBits(out, {expected.end() - static_cast<int64_t>(100 * width), expected.end()}));
}

BANYAN_FOR_ALL_BACKENDS(PagedAttentionTest);

}  // namespace
}  // namespace banyan::trunk
