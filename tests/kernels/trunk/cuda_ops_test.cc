// The GPU against the CPU at the full model's shapes: lengths around the sizes that kernels work
// in, several sequences at once, slots and pages in no order. Both take the same arrays.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/parallel/topology.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/device_arena.h"
#include "common/plan/op_scratch.h"
#include "common/quant/bf16.h"
#include "services/trunk/ops/cuda/cuda_backend.h"
#include "services/trunk/ops/cuda/linear.h"
#include "services/trunk/ops/int8_rows.h"
#include "tests/fakes/backends.h"

namespace banyan::trunk {
namespace {

constexpr uint64_t kSeed = 20241125;
constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr double kSplitLoss = 0x1p-17;  // of one factor split in two bf16

struct Sequence {
  int32_t num_rows;
  int32_t first_position;
  bool chunked;
};

// A step of several sequences with slots and pages in random order.
struct TestStep {
  std::vector<PlanSegment> segments;
  std::vector<int32_t> token_ids, positions, page_ids;
  std::vector<float> cos, sin;
  int32_t num_rows = 0;
  int32_t num_slots = 0;
  int32_t num_pages = 0;

  StepPlan Plan() const {
    return {.num_rows = num_rows,
            .segments = segments,
            .token_ids = token_ids,
            .positions = positions,
            .page_ids = page_ids,
            .rope_cos = cos,
            .rope_sin = sin};
  }
};

TestStep MakeStep(const std::vector<Sequence>& sequences, int32_t rotary_dim,
                  std::mt19937_64* random) {
  TestStep step;
  step.num_slots = static_cast<int32_t>(sequences.size()) + 3;
  for (const Sequence& s : sequences) {
    step.num_pages += (s.first_position + s.num_rows + kOpsPageTokens - 1) / kOpsPageTokens;
  }
  std::vector<int32_t> slots(static_cast<size_t>(step.num_slots));
  std::vector<int32_t> pages(static_cast<size_t>(step.num_pages));
  std::iota(slots.begin(), slots.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(slots.begin(), slots.end(), *random);
  std::shuffle(pages.begin(), pages.end(), *random);
  for (const Sequence& s : sequences) {
    step.segments.push_back({.first_row = step.num_rows,
                             .num_rows = s.num_rows,
                             .first_position = s.first_position,
                             .slot = slots.back(),
                             .first_page = static_cast<int32_t>(step.page_ids.size()),
                             .chunked = s.chunked});
    slots.pop_back();
    for (int32_t p = 0; p * kOpsPageTokens < s.first_position + s.num_rows; ++p) {
      step.page_ids.push_back(pages.back());
      pages.pop_back();
    }
    for (int32_t r = 0; r < s.num_rows; ++r) {
      step.token_ids.push_back(r);
      step.positions.push_back(s.first_position + r);
      for (int32_t i = 0; i < rotary_dim / 2; ++i) {
        const double angle = (s.first_position + r) * std::pow(1e7, -2.0 * i / rotary_dim);
        step.cos.push_back(static_cast<float>(std::cos(angle)));
        step.sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    step.num_rows += s.num_rows;
  }
  return step;
}

// Lengths around tiles, chunks and pages; a long one; and a mixed step.
std::vector<std::vector<Sequence>> Steps() {
  std::vector<std::vector<Sequence>> steps;
  for (int32_t length : {1, 63, 64, 65, 4095}) steps.push_back({{length, 0, true}});
  steps.push_back({{1, 4094, false}});
  steps.push_back({{1, 5, false},
                   {65, 64, true},
                   {1, 1000, false},
                   {3, 126, false},
                   {200, 0, true},
                   {1, 63, false},
                   {1, 64, false},
                   {1, 0, false}});
  std::vector<Sequence> decoding;
  for (int32_t i = 0; i < 17; ++i) decoding.push_back({1, i * 37, false});
  steps.push_back(decoding);
  return steps;
}

std::string Describe(const std::vector<Sequence>& sequences) {
  std::string text;
  for (const Sequence& s : sequences) {
    text += std::to_string(s.num_rows) + "@" + std::to_string(s.first_position) + " ";
  }
  return text;
}

class CudaOpsTest : public testing::TestWithParam<std::string> {
 protected:
  CudaOpsTest() : pool_({.num_threads = UsableCpuCount()}) {
    cpu_ = test::MakeBackend("auto", &pool_);
    gpu_ = test::MakeBackendOnHostArrays(GetParam(), &pool_);
    RecordProperty("seed", static_cast<int>(kSeed));
  }

  std::vector<float> Random(int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }

  void Reserve(const OpLimits& limits) {
    ASSERT_TRUE(cpu_->Reserve(limits).ok());
    const absl::Status status = gpu_->Reserve(limits);
    ASSERT_TRUE(status.ok()) << status;
  }

  WorkerPool pool_;
  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> gpu_;
  std::mt19937_64 random_{kSeed};
};

// Rows of `width` values: the difference of each against its norm.
testing::AssertionResult RowsNear(const std::vector<float>& found,
                                  const std::vector<float>& expected, int64_t width,
                                  double relative, double absolute) {
  double worst = 0;
  for (size_t row = 0; row * static_cast<size_t>(width) < expected.size(); ++row) {
    double difference = 0;
    double norm = 0;
    for (size_t i = row * static_cast<size_t>(width); i < (row + 1) * static_cast<size_t>(width);
         ++i) {
      const double d = static_cast<double>(found[i]) - expected[i];
      difference += d * d;
      norm += static_cast<double>(expected[i]) * expected[i];
    }
    const double bound = relative * std::sqrt(norm) + absolute;
    worst = std::max(worst, std::sqrt(difference) / bound);
    if (!(std::sqrt(difference) <= bound)) {
      return testing::AssertionFailure()
             << "row " << row << ": difference " << std::sqrt(difference) << " of norm "
             << std::sqrt(norm) << ", bound " << bound;
    }
  }
  return testing::AssertionSuccess() << "worst " << worst << " of the bound";
}

struct MatrixShape {
  int32_t n;
  int32_t k;
};

TEST_P(CudaOpsTest, LinearAtTheModelsShapes) {
  for (const auto [n, k] : {MatrixShape{12288, 2048},
                            {64, 2048},
                            {2048, 4096},
                            {8192, 2048},
                            {512, 2048},
                            {1, 2048},
                            {2048, 512},
                            {1001, 96}}) {
    std::vector<BF16> weights(static_cast<size_t>(n) * static_cast<size_t>(k));
    std::normal_distribution<float> normal(0, 0.05f);
    for (BF16& w : weights) w = ToBF16(normal(random_));
    const Matrix w = {DType::kBF16, n, k, reinterpret_cast<const std::byte*>(weights.data())};
    for (int32_t rows : {1, 2, 8, 9, 16, 17, 64, 65, 130, 300}) {
      if (rows > 130 && n > 2048) continue;
      const std::vector<float> x = Random(int64_t{rows} * k);
      std::vector<float> expected(static_cast<size_t>(rows) * static_cast<size_t>(n));
      std::vector<float> found(expected.size(), NAN);
      const LinearArgs cpu[] = {{.x = x.data(), .w = &w, .y = expected.data()}};
      const LinearArgs gpu[] = {{.x = x.data(), .w = &w, .y = found.data()}};
      cpu_->Linear(rows, cpu);
      gpu_->Linear(rows, gpu);
      // Against the norm of a row instead of the sum of magnitudes: random signs, so that errors of
      // k products add up like their square root; eight standard deviations. Terms are off by the
      // split's loss at the most, sums are rounded four times for 16 products.
      const double relative = 8 * (cuda::kSplitLoss + 4 * kEps * std::sqrt(k / 16.0));
      ASSERT_TRUE(RowsNear(found, expected, n, relative, relative * 0.05 * std::sqrt(k)))
          << n << " x " << k << ", " << rows << " rows";
    }
  }
}

// Whatever kernel and tile the number of rows chooses, bf16 weights and codes.
TEST_P(CudaOpsTest, ALinearRowsBitsDependOnThatRowAlone) {
  for (const auto [n, k] : {MatrixShape{12288, 96}, {9216, 2048}, {2048, 4096}, {513, 512}}) {
    const auto count = static_cast<size_t>(n) * static_cast<size_t>(k);
    std::vector<BF16> bf16(count);
    std::vector<int8_t> codes(count);
    std::normal_distribution<float> normal(0, 40);
    for (size_t i = 0; i < count; ++i) {
      const float value = normal(random_);
      bf16[i] = ToBF16(value);
      codes[i] = static_cast<int8_t>(std::clamp(value, -127.0f, 127.0f));
    }
    const std::vector<float> scales = Random(int64_t{n} * Int8Groups(k));
    for (const Matrix& w :
         {Matrix{DType::kBF16, n, k, reinterpret_cast<const std::byte*>(bf16.data())},
          Matrix{DType::kI8, n, k, reinterpret_cast<const std::byte*>(codes.data()),
                 scales.data()}}) {
      const std::vector<float> x = Random(int64_t{600} * k);
      const auto run = [&](int32_t first, int32_t rows) {
        std::vector<float> y(static_cast<size_t>(rows) * static_cast<size_t>(n), NAN);
        const LinearArgs calls[] = {{.x = x.data() + int64_t{first} * k, .w = &w, .y = y.data()}};
        gpu_->Linear(rows, calls);
        return y;
      };
      const std::vector<float> expected = run(0, 600);
      for (const auto& [first, rows] : {std::pair<int32_t, int32_t>{599, 1},
                                        {0, 3},
                                        {590, 7},
                                        {100, 16},
                                        {37, 30},
                                        {200, 64},
                                        {300, 65},
                                        {1, 128},
                                        {400, 131},
                                        {0, 300}}) {
        const std::vector<float> y = run(first, rows);
        ASSERT_EQ(
            std::memcmp(y.data(), expected.data() + int64_t{first} * n, y.size() * sizeof(float)),
            0)
            << DTypeName(w.dtype) << " " << n << " x " << k << ", " << rows << " rows from "
            << first;
      }
    }
  }
}

constexpr DeltaNetShape kDeltaNet = {.num_key_heads = 16,
                                     .num_value_heads = 32,
                                     .key_head_dim = 128,
                                     .value_head_dim = 128,
                                     .conv_taps = 4,
                                     .eps = 1e-6f};

struct DeltaNetWeights {
  std::vector<float> weight, rate, bias, norm;
};

// States of a step's slots, moved on by Run, and what it gives of each row.
struct DeltaNetRun {
  std::vector<float> conv, state, qkv, decay, beta, out;

  void Run(Backend* backend, const DeltaNetWeights& w, const StepPlan& plan, const float* qkvz,
           const float* ba) {
    const auto rows = static_cast<size_t>(plan.num_rows);
    qkv.assign(rows * 8192, NAN);
    decay.assign(rows * 32, NAN);
    beta.assign(rows * 32, NAN);
    out.assign(rows * 4096, NAN);
    backend->BeginStep(plan);
    backend->CausalConv({.shape = kDeltaNet,
                         .qkvz = qkvz,
                         .ba = ba,
                         .weight = w.weight.data(),
                         .neg_decay_rate = w.rate.data(),
                         .dt_bias = w.bias.data(),
                         .conv_states = conv.data(),
                         .qkv = qkv.data(),
                         .log_decay = decay.data(),
                         .beta = beta.data()});
    backend->DeltaNet({.shape = kDeltaNet,
                       .qkv = qkv.data(),
                       .qkvz = qkvz,
                       .log_decay = decay.data(),
                       .beta = beta.data(),
                       .norm_weight = w.norm.data(),
                       .states = state.data(),
                       .out = out.data()});
  }
};

class DeltaNetCudaTest : public CudaOpsTest {
 protected:
  void SetUp() override {
    Reserve({.max_rows = 4100,
             .max_segments = 32,
             .max_position = 8192,
             .num_experts = 1,
             .attention = {},
             .delta_net = kDeltaNet});
    weights_ = {Random(4 * kDeltaNet.conv_dim(), 0.5f), Random(32), Random(32), Random(128)};
    for (float& value : weights_.rate) value = -std::exp(value);
  }

  // What the slots hold: bounded by what many updates could have left.
  DeltaNetRun Before(int32_t slots) {
    DeltaNetRun run;
    run.conv = Random(slots * kDeltaNet.conv_state_floats());
    run.state = Random(slots * kDeltaNet.state_floats(), 0.1f);
    return run;
  }

  // Every head of every row, o being S^T q before its norm. Sums of key_head_dim terms over a
  // chunk's worth of tokens lose in proportion to the result, as in delta_net_test. Factors split
  // in two f16 lose 2^-22 of each factor and as much in what is dropped, in a chain of four
  // products, in proportion to |q| |S|, which cancellation may leave little of. The norm of S: it
  // decays, and a token brings it beta |v| at the most, since I - beta k k^T makes nothing longer.
  // From o on an error is twice as large at the most, times weight and gate, over the norm's root.
  testing::AssertionResult OutputsNear(const DeltaNetRun& found, const DeltaNetRun& expected,
                                       const DeltaNetRun& before, const TestStep& step,
                                       const std::vector<float>& qkvz) const {
    constexpr double kSums = 8 * kEps * (128 + 64);
    constexpr double kProducts = 4 * 3 * 0x1p-22;
    const auto norm = [](const float* x, int64_t n) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
      return std::sqrt(sum);
    };
    double worst = 0;
    for (const PlanSegment& segment : step.segments) {
      for (int64_t head = 0; head < 32; ++head) {
        double state = segment.first_position == 0
                           ? 0.0
                           : norm(&before.state[static_cast<size_t>(
                                      (int64_t{segment.slot} * 32 + head) * 128 * 128)],
                                  128 * 128);
        for (int64_t row = segment.first_row; row < segment.first_row + segment.num_rows; ++row) {
          const float* const qkv = &expected.qkv[static_cast<size_t>(row * 8192)];
          const auto gate = static_cast<size_t>(row * 32 + head);
          state = std::exp(static_cast<double>(expected.decay[gate])) * state +
                  static_cast<double>(expected.beta[gate]) * norm(qkv + 4096 + head * 128, 128);
          const auto at = static_cast<size_t>(row * 4096 + head * 128);
          const float* const z = &qkvz[static_cast<size_t>(
              row * kDeltaNet.qkvz_dim() + head / 2 * 768 + 256 + (2 + head % 2) * 128)];
          double difference = 0, length = 0, gain = 0, ratio = 0;
          for (size_t i = 0; i < 128; ++i) {
            const double y = expected.out[at + i];
            const double d = found.out[at + i] - y;
            const double scale = weights_.norm[i] * (z[i] / (1 + std::exp(-1.0 * z[i])));
            difference += d * d;
            length += y * y;
            gain = std::max(gain, std::abs(scale));
            if (scale != 0)
              ratio += y / scale * (y / scale) / 128;  // mean(o^2) / (mean(o^2) + eps)
          }
          const double root = std::sqrt(kDeltaNet.eps / (1 - std::min(ratio, 1 - 1e-5)));
          const double bound = kSums * std::sqrt(length) + kProducts *
                                                               norm(qkv + head / 2 * 128, 128) *
                                                               state * 2 * gain / root;
          if (!(std::sqrt(difference) <= bound)) {
            return testing::AssertionFailure()
                   << "row " << row << " head " << head << ": difference " << std::sqrt(difference)
                   << " of norm " << std::sqrt(length) << ", bound " << bound;
          }
          worst = std::max(worst, std::sqrt(difference) / bound);
        }
      }
    }
    return testing::AssertionSuccess() << "worst " << worst << " of the bound";
  }

  DeltaNetWeights weights_;
};

TEST_P(DeltaNetCudaTest, RaggedSteps) {
  std::vector<std::vector<Sequence>> steps = Steps();
  // More chunks than are taken at once; the cut lies within a sequence.
  steps.push_back(
      {{1, 0, true}, {1000, 64, true}, {64, 128, true}, {1, 77, false}, {2900, 640, true}});
  for (const std::vector<Sequence>& sequences : steps) {
    const TestStep step = MakeStep(sequences, 0, &random_);
    const std::vector<float> qkvz = Random(int64_t{step.num_rows} * kDeltaNet.qkvz_dim());
    const std::vector<float> ba = Random(int64_t{step.num_rows} * 64, 2);
    const DeltaNetRun before = Before(step.num_slots);
    DeltaNetRun expected = before;
    DeltaNetRun found = before;
    expected.Run(cpu_.get(), weights_, step.Plan(), qkvz.data(), ba.data());
    found.Run(gpu_.get(), weights_, step.Plan(), qkvz.data(), ba.data());
    SCOPED_TRACE(Describe(sequences));
    ASSERT_EQ(found.conv, expected.conv);
    ASSERT_TRUE(RowsNear(found.qkv, expected.qkv, 128, 32 * kEps, 1e-12));
    ASSERT_TRUE(RowsNear(found.decay, expected.decay, 32, 16 * kEps, 1e-12));
    ASSERT_TRUE(RowsNear(found.beta, expected.beta, 32, 16 * kEps, 1e-12));
    ASSERT_TRUE(OutputsNear(found, expected, before, step, qkvz));
    // Sums of key_head_dim terms over a chunk's worth of tokens, as in delta_net_test.
    ASSERT_TRUE(RowsNear(found.state, expected.state, 128 * 128, 8 * kEps * (128 + 64), 1e-6));
  }
}

// In one step alone, or in several beside others: the same bits.
TEST_P(DeltaNetCudaTest, CutsAndNeighboursChangeNoBit) {
  constexpr int32_t kRows = 2500;
  constexpr int32_t kNeighbour = 70;
  constexpr int32_t kSlot = 2;
  const std::vector<float> qkvz = Random(int64_t{kRows} * kDeltaNet.qkvz_dim());
  const std::vector<float> ba = Random(int64_t{kRows} * 64, 2);
  const DeltaNetRun before = Before(4);
  const auto plan = [](const std::vector<PlanSegment>& segments) {
    StepPlan step;
    step.num_rows = segments.back().first_row + segments.back().num_rows;
    step.segments = segments;
    return step;
  };
  DeltaNetRun whole = before;
  const std::vector<PlanSegment> alone = {
      {.first_row = 0, .num_rows = kRows, .first_position = 0, .slot = kSlot, .chunked = true}};
  whole.Run(gpu_.get(), weights_, plan(alone), qkvz.data(), ba.data());

  DeltaNetRun cut = before;
  const std::vector<int32_t> cuts = {0, 64, 128, 640, 2432, kRows};
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int32_t rows = cuts[i + 1] - cuts[i];
    const std::vector<PlanSegment> both = {
        {.first_row = 0, .num_rows = kNeighbour, .first_position = 0, .slot = 0, .chunked = true},
        {.first_row = kNeighbour,
         .num_rows = rows,
         .first_position = cuts[i],
         .slot = kSlot,
         .chunked = true}};
    const auto with = [&](const std::vector<float>& values, int64_t width) {
      std::vector<float> joined = Random(kNeighbour * width);
      joined.insert(joined.end(), values.begin() + cuts[i] * width,
                    values.begin() + cuts[i + 1] * width);
      return joined;
    };
    const std::vector<float> their_qkvz = with(qkvz, kDeltaNet.qkvz_dim());
    const std::vector<float> their_ba = with(ba, 64);
    cut.Run(gpu_.get(), weights_, plan(both), their_qkvz.data(), their_ba.data());
    EXPECT_EQ(0, std::memcmp(&cut.out[size_t{kNeighbour} * 4096],
                             &whole.out[static_cast<size_t>(cuts[i]) * 4096],
                             static_cast<size_t>(rows) * 4096 * sizeof(float)))
        << "rows from " << cuts[i];
  }
  const auto slot_of = [](const DeltaNetRun& run, int32_t slot) {
    const auto floats = static_cast<size_t>(kDeltaNet.state_floats());
    const auto begin = run.state.begin() + static_cast<int64_t>(floats) * slot;
    return std::vector<float>(begin, begin + static_cast<int64_t>(floats));
  };
  EXPECT_EQ(slot_of(cut, kSlot), slot_of(whole, kSlot));
  EXPECT_EQ(slot_of(cut, 1), slot_of(before, 1));
  EXPECT_EQ(slot_of(cut, 3), slot_of(before, 3));
}

TEST_P(CudaOpsTest, AttentionOfRaggedSteps) {
  const AttentionShape shape = {
      .num_heads = 16, .num_kv_heads = 2, .head_dim = 256, .rotary_dim = 64, .eps = 1e-6f};
  Reserve({.max_rows = 8192,
           .max_segments = 32,
           .max_position = 8192,
           .num_experts = 1,
           .attention = shape,
           .delta_net = {}});
  const std::vector<float> q_norm = Random(256, 0.1f);
  const std::vector<float> k_norm = Random(256, 0.1f);
  for (const std::vector<Sequence>& sequences : Steps()) {
    const TestStep step = MakeStep(sequences, shape.rotary_dim, &random_);
    // Layouts of pages differ: what lies before the step is written by a step of its own.
    TestStep before = step;
    before.segments.clear();
    before.token_ids.clear();
    before.positions.clear();
    before.cos.clear();
    before.sin.clear();
    before.num_rows = 0;
    for (const PlanSegment& s : step.segments) {
      if (s.first_position == 0) continue;
      PlanSegment segment = s;
      segment.first_row = before.num_rows;
      segment.num_rows = s.first_position;
      segment.first_position = 0;
      before.segments.push_back(segment);
      before.num_rows += segment.num_rows;
      for (int32_t p = 0; p < segment.num_rows; ++p) {
        before.positions.push_back(p);
        for (int32_t i = 0; i < 32; ++i) {
          before.cos.push_back(1);
          before.sin.push_back(0);
        }
      }
    }
    struct Inputs {
      std::vector<float> q, k, v;
    };
    const auto inputs = [&](int64_t rows) {
      return Inputs{Random(rows * 8192), Random(rows * 512), Random(rows * 512)};
    };
    const Inputs old = inputs(before.num_rows);
    const Inputs now = inputs(step.num_rows);
    const auto run = [&](Backend* backend, DType cache_dtype) {
      AttentionArgs args = {.shape = shape, .q_norm = q_norm.data(), .k_norm = k_norm.data()};
      args.shape.cache_dtype = cache_dtype;
      const auto floats = static_cast<size_t>(step.num_pages * args.page_elements());
      std::vector<float> keys(floats, NAN), values(floats, NAN);
      args.key_pages = keys.data();
      args.value_pages = values.data();
      std::vector<float> out;
      for (const auto& [plan, in] : {std::pair(before.Plan(), &old), {step.Plan(), &now}}) {
        Inputs copy = *in;
        out.assign(static_cast<size_t>(plan.num_rows) * 4096, NAN);
        args.q_gate = copy.q.data();
        args.k = copy.k.data();
        args.v = copy.v.data();
        args.out = out.data();
        if (plan.num_rows == 0) continue;
        backend->BeginStep(plan);
        backend->PrepareAttention(args);
        if (plan.num_rows == step.num_rows) backend->PagedAttention(args);
      }
      return out;
    };
    const std::vector<float> expected = run(cpu_.get(), DType::kF32);
    const std::vector<float> found = run(gpu_.get(), DType::kF32);
    // Scores of size up to sqrt(256) lose twice a split and 256 roundings; values are as large as
    // the weighted sum of them may be, which is what the output's norm understates: hence the
    // constant.
    const double loss = 16 * (4 * kSplitLoss + 16 * kEps) + 2 * kSplitLoss;
    ASSERT_TRUE(RowsNear(found, expected, 256, loss, loss)) << Describe(sequences);
    // Keys and values in bf16, half a unit of 2^-8 off at most: the signs of 256 products are
    // random, so that a score is as far off as one of its terms; eight standard deviations.
    const double rounding = 8 * 0x1p-9;
    ASSERT_TRUE(RowsNear(run(gpu_.get(), DType::kBF16), expected, 256, rounding, rounding))
        << Describe(sequences);
  }
}

// Rows of Qwen3's vocabulary, as many as a step may have: the same ids and the same bits.
TEST_P(CudaOpsTest, TopLogitsOfTheWholeVocabulary) {
  constexpr int32_t kVocab = 151936;
  constexpr int32_t kSampled = 151669;
  constexpr int32_t kRows = 32;
  Reserve({.max_rows = kRows,
           .max_segments = 1,
           .max_position = 1,
           .num_experts = 1,
           .attention = {},
           .delta_net = {},
           .max_logits_rows = kRows,
           .vocab_size = kVocab});
  std::vector<float> logits = Random(int64_t{kRows} * kVocab, 2);
  const auto row = [&](int32_t r) { return &logits[static_cast<size_t>(r) * kVocab]; };
  // As of a language model: a few far above the bulk, in some rows beside each other; bf16's coarse
  // steps; broken ones.
  for (int32_t r = 0; r < kRows; ++r) {
    for (int32_t i = 0; i < 40; ++i) {
      row(r)[r % 4 == 0 ? 5000 + i : static_cast<int32_t>(random_() % kSampled)] +=
          6.0f + static_cast<float>(i % 7);
    }
    if (r % 3 == 0) {
      for (int32_t id = 0; id < kVocab; ++id) row(r)[id] = ToFloat(ToBF16(row(r)[id]));
    }
  }
  row(7)[kSampled - 1] = NAN;
  row(9)[kSampled] = NAN;
  row(20)[77] = -INFINITY;
  struct Found {
    std::vector<float> scores;
    std::vector<int32_t> ids, bounded;
  };
  const auto run = [&](Backend* backend, int32_t rows, int32_t k) {
    const auto count = static_cast<size_t>(rows) * static_cast<size_t>(k);
    Found found = {std::vector<float>(count), std::vector<int32_t>(count),
                   std::vector<int32_t>(static_cast<size_t>(rows))};
    backend->TopLogits(rows, {.vocab_size = kVocab,
                              .num_ids = kSampled,
                              .k = k,
                              .logits = logits.data(),
                              .scores = found.scores.data(),
                              .ids = found.ids.data(),
                              .bounded = found.bounded.data()});
    return found;
  };
  for (const int32_t rows : {1, 3, 16, kRows}) {
    for (const int32_t k : {1, 20, kMaxTopLogits}) {
      const Found expected = run(cpu_.get(), rows, k);
      const Found found = run(gpu_.get(), rows, k);
      ASSERT_EQ(found.bounded, expected.bounded);
      for (int32_t r = 0; r < rows; ++r) {
        if (expected.bounded[static_cast<size_t>(r)] == 0) continue;
        for (int32_t i = r * k; i < (r + 1) * k; ++i) {
          const auto at = static_cast<size_t>(i);
          ASSERT_EQ(found.ids[at], expected.ids[at]) << "row " << r << ", " << i - r * k;
          ASSERT_EQ(found.scores[at], expected.scores[at]);
        }
      }
    }
  }
}

// Enough of a device's life to see that nothing is allocated after Reserve and that faults are
// told.
TEST_P(CudaOpsTest, LimitsAreChecked) {
  auto backend = CreateCudaBackend({});
  ASSERT_TRUE(backend.ok());
  OpLimits limits = {.max_rows = 8,
                     .max_segments = 1,
                     .max_position = 64,
                     .num_experts = 2000,
                     .attention = {},
                     .delta_net = {}};
  EXPECT_EQ(std::string((*backend)->Reserve(limits).message()),
            "CUDA backend: num_experts is 2000, at most 1024 is supported");
  limits.num_experts = 8;
  limits.delta_net.key_head_dim = 256;
  EXPECT_EQ((*backend)->Reserve(limits).code(), absl::StatusCode::kUnimplemented);
}

TEST_P(CudaOpsTest, ABudgetHolds) {
  auto backend = CreateCudaBackend({.vram_budget_bytes = 8 << 20});
  ASSERT_TRUE(backend.ok());
  EXPECT_TRUE((*backend)->AllocateDevice(4 << 20).ok());
  const auto more = (*backend)->AllocateDevice(5 << 20);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(more.status().message()),
            "GPU memory: 5242880 bytes wanted beyond 4194304 in use, the budget is 8388608");

  // Of an arena, before anything is taken; the last byte is granted.
  DeviceArena arena;
  arena.Add((8 << 20) + 1);
  backend = CreateCudaBackend({.vram_budget_bytes = 8 << 20});
  ASSERT_TRUE(backend.ok());
  const absl::Status refused = (*backend)->SetAside(arena);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(refused.message()),
            "GPU memory: 10485760 bytes wanted beyond 0 in use, the budget is 8388608");
  arena = DeviceArena();
  arena.Add(8 << 20);
  EXPECT_TRUE((*backend)->SetAside(arena).ok());
  EXPECT_TRUE((*backend)->AllocateDevice(8 << 20).ok());
}

// More than any card has: an error with the numbers, and the device goes on.
TEST_P(CudaOpsTest, WhatTheDeviceHasNotGotIsRefused) {
  auto backend = CreateCudaBackend({});
  ASSERT_TRUE(backend.ok());
  DeviceArena arena;
  arena.Add(uint64_t{1} << 46);
  const absl::Status refused = (*backend)->SetAside(arena);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              testing::AllOf(testing::HasSubstr("GPU memory: 70368744177664 bytes wanted, "),
                             testing::HasSubstr(" free, 0 in use by us")));
  EXPECT_TRUE((*backend)->AllocateDevice(1 << 20).ok());
  EXPECT_TRUE((*backend)->Synchronize().ok());
}

// Pieces one behind the other, zeroed, within what was set aside; nothing beyond.
TEST_P(CudaOpsTest, AnArenaIsUsedToTheByte) {
  auto backend = CreateCudaBackend({});
  ASSERT_TRUE(backend.ok());
  DeviceArena arena;
  arena.Add(1000);
  arena.Add(5 << 20);
  arena.Add(kCudaHandoverBytes);
  arena.Add(77);
  size_t free = 0;
  size_t free_before = 0;
  size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  ASSERT_TRUE((*backend)->SetAside(arena).ok());
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  std::printf("an arena of %llu bytes took %lld of the device\n",
              static_cast<unsigned long long>(arena.bytes()),
              static_cast<long long>(free_before) - static_cast<long long>(free));
  const auto first = (*backend)->AllocateDevice(1000);
  const auto second = (*backend)->AllocateDevice(5 << 20);
  const auto third = (*backend)->AllocateShared(77);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok());
  EXPECT_EQ(*second - *first, 1024);
  EXPECT_EQ(third->device - *second, (5 << 20) + 256);
  std::vector<std::byte> read(1000 + (5 << 20));
  ASSERT_TRUE((*backend)->ReadBack(*first, read.size(), read.data()).ok());
  EXPECT_EQ(std::count(read.begin(), read.end(), std::byte{0}),
            static_cast<ptrdiff_t>(read.size()));
  const auto more = (*backend)->AllocateDevice(1);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(more.status().message()),
            "GPU memory: 256 bytes wanted beyond 5244416 in use and 0 lent, the plan has 5244416");
}

// What matrices pass through on their way to codes is where later pieces lie: these come zeroed.
TEST_P(CudaOpsTest, StagingIsLent) {
  constexpr int32_t kRows = 300;
  constexpr int32_t kCols = 256;
  std::vector<float> values(kRows * kCols);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 97) - 40;
  DeviceArena arena;
  arena.Add(values.size());
  arena.Add(kRows * Int8Groups(kCols) * sizeof(float));
  arena.AddForNow(2 * kCudaCodeStagingBytes);
  arena.Add(2 * kCudaCodeStagingBytes);
  EXPECT_EQ(arena.for_now_bytes(), 0u);
  auto backend = CreateCudaBackend({});
  ASSERT_TRUE(backend.ok());
  ASSERT_TRUE((*backend)->SetAside(arena).ok());
  const TensorView view = {
      DType::kF32, {kRows, kCols}, reinterpret_cast<const std::byte*>(values.data())};
  const auto codes = (*backend)->PlaceInt8Matrix(view);
  ASSERT_TRUE(codes.ok()) << codes.status();
  const auto later = (*backend)->AllocateDevice(2 * kCudaCodeStagingBytes);
  ASSERT_TRUE(later.ok()) << later.status();
  std::vector<std::byte> read(2 * kCudaCodeStagingBytes);
  ASSERT_TRUE((*backend)->ReadBack(*later, read.size(), read.data()).ok());
  EXPECT_EQ(std::count(read.begin(), read.end(), std::byte{0}),
            static_cast<ptrdiff_t>(read.size()));
  // The codes are as the host makes them, each where the device wants it.
  std::vector<int8_t> expected(values.size());
  std::vector<float> scales(static_cast<size_t>(kRows * Int8Groups(kCols)));
  QuantizeInt8Rows(view, 0, kRows, expected.data(), scales.data());
  std::vector<int8_t> found(values.size());
  ASSERT_TRUE((*backend)->ReadBack(codes->data, found.size(), found.data()).ok());
  std::vector<int8_t> in_order(values.size());
  for (int32_t i = 0; i < kRows * kCols; ++i) {
    const int32_t column = i % kCols;
    in_order[static_cast<size_t>(i)] =
        found[static_cast<size_t>(i - column + cuda::CodePlace(kCols, column))];
  }
  EXPECT_EQ(in_order, expected);
}

// Reserve is the last that asks: what is left then was planned for nothing.
TEST_P(CudaOpsTest, APlanOfTooMuchIsAFault) {
  const OpLimits limits = {.max_rows = 8,
                           .max_segments = 1,
                           .max_position = 64,
                           .num_experts = 8,
                           .attention = {},
                           .delta_net = {}};
  for (const uint64_t spare : {uint64_t{0}, uint64_t{1}}) {
    DeviceArena arena;
    ForEachCudaScratch(limits, [&arena](size_t bytes) { arena.Add(bytes); });
    arena.Add(4);  // a shared buffer, which counters of hand-overs come with
    arena.Add(spare);
    auto backend = CreateCudaBackend({});
    ASSERT_TRUE(backend.ok());
    ASSERT_TRUE((*backend)->SetAside(arena).ok());
    ASSERT_TRUE((*backend)->AllocateShared(4).ok());
    EXPECT_EQ((*backend)->Reserve(limits).code(),
              spare == 0 ? absl::StatusCode::kOk : absl::StatusCode::kInternal);
  }
}

std::vector<std::string> Devices() {
  return CudaDevicePresent() ? std::vector<std::string>{"cuda"} : std::vector<std::string>{};
}
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaOpsTest);
INSTANTIATE_TEST_SUITE_P(Devices, CudaOpsTest, testing::ValuesIn(Devices()),
                         [](const testing::TestParamInfo<std::string>& param) {
                           return param.param;
                         });

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DeltaNetCudaTest);
INSTANTIATE_TEST_SUITE_P(Devices, DeltaNetCudaTest, testing::ValuesIn(Devices()),
                         [](const testing::TestParamInfo<std::string>& param) {
                           return param.param;
                         });

// On every machine: without a GPU the message says so.
TEST(CudaDeviceTest, SaysWhatIsMissing) {
  if (CudaDevicePresent()) GTEST_SKIP() << "there is a GPU";
  const auto backend = CreateCudaBackend({});
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(backend.status().message()), "no NVIDIA driver on this machine");
}

}  // namespace
}  // namespace banyan::trunk
