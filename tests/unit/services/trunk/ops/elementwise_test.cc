#include <algorithm>
#include <bit>
#include <cmath>

#include "common/quant/bf16.h"
#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

class ElementwiseTest : public OpsFixture {};

double SiluOf(double x) { return x / (1 + std::exp(-x)); }

TEST_P(ElementwiseTest, RmsNormAddsNormalisesAndWeighs) {
  for (int32_t n : {1, 7, 16, 33, 128, 300}) {
    const int32_t rows = 11;
    const auto size = static_cast<size_t>(n) * rows;
    const std::vector<float> x = Random(size, 3);
    const std::vector<float> addend = Random(size);
    const std::vector<float> weight = Random(static_cast<size_t>(n), 0.2f);
    for (bool add : {false, true}) {
      std::vector<float> hidden = x;
      std::vector<float> out(size, NAN);
      backend_->RmsNorm(rows, n, 1e-6f, weight.data(), add ? addend.data() : nullptr, hidden.data(),
                        out.data());
      for (int32_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int32_t i = 0; i < n; ++i) {
          const auto at = static_cast<size_t>(r * n + i);
          ASSERT_EQ(hidden[at], add ? x[at] + addend[at] : x[at]);
          squares += static_cast<double>(hidden[at]) * hidden[at];
        }
        const double scale = 1 / std::sqrt(squares / n + 1e-6);
        for (int32_t i = 0; i < n; ++i) {
          const auto at = static_cast<size_t>(r * n + i);
          const double expected = hidden[at] * scale * (1.0 + weight[static_cast<size_t>(i)]);
          // A sum of n positive squares, its root (halves the error), four more roundings.
          ASSERT_NEAR(out[at], expected, (n / 16.0 + 8) * kEps * std::abs(expected) + 1e-30)
              << n << " columns";
        }
      }
    }
  }
}

TEST_P(ElementwiseTest, SwigluOverTheWholeRange) {
  std::vector<float> gate;
  for (float x = -100; x <= 100; x += 0.37f) gate.push_back(x);
  for (float x : {0.0f, 1e-30f, -1e-30f, 3e38f, INFINITY}) gate.push_back(x);
  std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  backend_->Swiglu(1, static_cast<int32_t>(gate.size()), gate.data(), up.data(), out.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double expected = SiluOf(gate[i]);
    if (std::isinf(expected)) {
      EXPECT_EQ(out[i], gate[i]);
      continue;
    }
    // e^x within four roundings; below -88 the true value is smaller than 1e-36.
    EXPECT_NEAR(out[i], expected, 8 * kEps * std::abs(expected) + 1e-36) << gate[i];
  }
  const float nan = NAN;
  backend_->Swiglu(1, 1, &nan, up.data(), out.data());
  EXPECT_TRUE(std::isnan(out[0]));
}

TEST_P(ElementwiseTest, MoeCombineWeighsTheSharedExpert) {
  const int32_t rows = 5;
  const int32_t n = 37;
  const std::vector<float> routed = Random(rows * n);
  const std::vector<float> shared = Random(rows * n);
  const std::vector<float> gate = Random(rows, 4);
  const std::vector<float> before = Random(rows * n);
  std::vector<float> hidden = before;
  backend_->MoeCombine(rows, n, routed.data(), shared.data(), gate.data(), hidden.data());
  for (size_t i = 0; i < hidden.size(); ++i) {
    const double sigmoid = 1 / (1 + std::exp(-static_cast<double>(gate[i / n])));
    const double term = routed[i] + sigmoid * shared[i];
    const double magnitude = std::abs(before[i]) + std::abs(routed[i]) + std::abs(shared[i]);
    EXPECT_NEAR(hidden[i], before[i] + term, 8 * kEps * magnitude);
  }
}

// The roundings of common/quant/bf16.h on every device: ties, what overflows, what is tiny, and
// what is no number.
TEST_P(ElementwiseTest, RoundRowsAsTheHostDoes) {
  std::vector<float> values = Random(4000, 100);
  for (const uint32_t upper : {0x0000u, 0x0001u, 0x3f80u, 0x3f81u, 0x7f7fu, 0x7f80u, 0x7fc0u}) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      for (const uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
        values.push_back(std::bit_cast<float>((upper | sign) << 16 | lower));
      }
    }
  }
  const auto count = static_cast<int32_t>(values.size());
  for (const int32_t n : {count, count - 1, 1}) {
    const int32_t rows = n == 1 ? 9 : 1;
    std::vector<BF16> out(values.size() + 1, BF16{0x1234});
    backend_->RoundRows(rows, n, values.data(), out.data());
    const auto rounded = static_cast<size_t>(rows * n);
    for (size_t i = 0; i < rounded; ++i) {
      ASSERT_EQ(out[i].bits, ToBF16(values[i]).bits) << values[i] << " at " << i << " of " << n;
    }
    EXPECT_EQ(out[rounded].bits, 0x1234);
  }
}

TEST_P(ElementwiseTest, GatherAddEmbed) {
  const std::vector<float> x = Random(6 * 5);
  std::vector<float> out(3 * 5);
  const int32_t rows[] = {4, 0, 4};
  backend_->GatherRows(rows, 5, x.data(), out.data());
  for (size_t i = 0; i < 15; ++i) {
    EXPECT_EQ(out[i], x[static_cast<size_t>(rows[i / 5]) * 5 + i % 5]);
  }
  std::vector<float> sum = out;
  backend_->AddRows(3, 5, x.data(), sum.data());
  for (size_t i = 0; i < 15; ++i) EXPECT_EQ(sum[i], out[i] + x[i]);

  const Matrix table = {DType::kF32, 6, 5, reinterpret_cast<const std::byte*>(x.data())};
  StepPlan plan;
  plan.num_rows = 3;
  plan.token_ids = rows;
  backend_->BeginStep(plan);
  std::vector<float> embedded(15);
  backend_->Embed(table, embedded.data());
  EXPECT_TRUE(SameBits(embedded, out));
}

// Operations are of the part that was begun or chosen last, as often as it changes, and of one
// alone again after that.
TEST_P(ElementwiseTest, PartsOfAStepInTurn) {
  const std::vector<float> x = Random(6 * 5);
  const Matrix table = {DType::kF32, 6, 5, reinterpret_cast<const std::byte*>(x.data())};
  const std::vector<int32_t> ids[] = {{4, 0, 4}, {1, 5}};
  const auto plan_of = [&](int part) {
    StepPlan plan;
    plan.num_rows = static_cast<int32_t>(ids[part].size());
    plan.token_ids = ids[part];
    return plan;
  };
  const auto expect_rows_of = [&](int part) {
    std::vector<float> out(ids[part].size() * 5);
    backend_->Embed(table, out.data());
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i], x[static_cast<size_t>(ids[part][i / 5]) * 5 + i % 5]) << part;
    }
  };
  for (int step = 0; step < 3; ++step) {
    for (const int part : {0, 1}) {
      backend_->BeginPart(part, plan_of(part));
      expect_rows_of(part);
    }
    for (const int part : {0, 1, 1, 0}) {
      backend_->UsePart(part);
      expect_rows_of(part);
    }
    backend_->BeginStep(plan_of(1));
    expect_rows_of(1);
  }
}

// Rows 2 and 3 of a table: zeros for every other id. In f32 and in bf16, of widths that are
// computed apart.
TEST_P(ElementwiseTest, EmbedGivesZerosForRowsThatOthersHave) {
  for (const int32_t width : {5, 16}) {
    const auto n = static_cast<size_t>(width);
    std::vector<float> f32(2 * n);
    std::vector<uint16_t> bf16(2 * n);
    for (size_t i = 0; i < f32.size(); ++i) {
      f32[i] = static_cast<float>(i + 1);
      bf16[i] = ToBF16(f32[i]).bits;
    }
    const int32_t ids[] = {3, 0, 2, 1, 4, 3};
    StepPlan plan;
    plan.num_rows = 6;
    plan.token_ids = ids;
    for (const bool half : {false, true}) {
      const Matrix table = {.dtype = half ? DType::kBF16 : DType::kF32,
                            .rows = 2,
                            .cols = width,
                            .data = half ? reinterpret_cast<const std::byte*>(bf16.data())
                                         : reinterpret_cast<const std::byte*>(f32.data()),
                            .first_row = 2};
      backend_->BeginStep(plan);
      std::vector<float> out(6 * n, -1.0f);
      backend_->Embed(table, out.data());
      for (size_t row = 0; row < 6; ++row) {
        const bool here = ids[row] == 2 || ids[row] == 3;
        for (size_t i = 0; i < n; ++i) {
          EXPECT_EQ(out[row * n + i], here ? f32[static_cast<size_t>(ids[row] - 2) * n + i] : 0.0f);
        }
      }
    }
  }
}

BANYAN_FOR_ALL_BACKENDS(ElementwiseTest);

}  // namespace
}  // namespace banyan::trunk
