#include "services/expert/runtime/cpu_executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "services/expert/kernels/kernel_table.h"
#include "tests/kernels/expert/ffn_oracle.h"

namespace banyan::expert {
namespace {

using testing::OracleDown;
using testing::OracleHidden;
using testing::OracleOf;
using testing::OracleValues;
using testing::OracleWeightedSum;
using testing::RandomExpert;

constexpr uint16_t kNone = 0xffff;
constexpr uint32_t kSeed = 21;

// Two layers: 0 is dense, 1 has random experts.
struct Model {
  Model(int32_t hidden_size, int32_t width, int32_t num_experts, int32_t top_k, WeightType type)
      : random(kSeed) {
    table.geometry = {.num_layers = 2,
                      .hidden_size = hidden_size,
                      .num_experts = num_experts,
                      .moe_intermediate_size = width,
                      .max_top_k = top_k,
                      .first_expert = 0,
                      .num_shard_experts = num_experts,
                      .first_width = 0,
                      .num_shard_width = width,
                      .max_rows = 4096};
    table.layers.resize(2);
    for (int32_t e = 0; e < num_experts; ++e) {
      experts.push_back(std::make_unique<RandomExpert>(hidden_size, width, type, 1, random));
      table.layers[1].push_back(experts.back()->weights());
    }
  }

  // The part of the experts or of the width that a shard serves.
  ExpertTable Shard(int32_t first_expert, int32_t num_experts, int32_t first_width,
                    int32_t num_width) const {
    ExpertTable shard = table;
    shard.geometry.first_expert = first_expert;
    shard.geometry.num_shard_experts = num_experts;
    shard.geometry.first_width = first_width;
    shard.geometry.num_shard_width = num_width;
    shard.layers[1].clear();
    for (int32_t e = first_expert; e < first_expert + num_experts; ++e) {
      ExpertWeights w = table.layers[1][static_cast<size_t>(e)];
      w.gate_proj.data += first_width * w.gate_proj.row_stride_bytes;
      w.up_proj.data += first_width * w.up_proj.row_stride_bytes;
      w.down_proj.data += first_width * WeightBytes(w.down_proj.type);
      shard.layers[1].push_back(w);
    }
    return shard;
  }

  std::mt19937 random;
  ExpertTable table;
  std::vector<std::unique_ptr<RandomExpert>> experts;
};

// A call's arrays, at odd addresses as in frames.
struct Call {
  Call(Model& model, int32_t rows, int32_t k, ActivationType type)
      : num_rows(rows),
        top_k(k),
        hidden_size(model.table.geometry.hidden_size),
        activation_type(type) {
    std::normal_distribution<float> normal;
    std::vector<uint16_t> all(static_cast<size_t>(model.table.geometry.num_experts));
    std::iota(all.begin(), all.end(), uint16_t{0});
    for (int32_t row = 0; row < rows; ++row) {
      std::shuffle(all.begin(), all.end(), model.random);
      for (int32_t j = 0; j < k; ++j) {
        ids.push_back(model.random() % 7 == 0 ? kNone : all[static_cast<size_t>(j)]);
        weights.push_back(normal(model.random));
      }
      for (int32_t c = 0; c < hidden_size; ++c) {
        const float value = normal(model.random);
        x.push_back(type == ActivationType::kBF16 ? ToFloat(ToBF16(value)) : value);
      }
    }
  }

  // Rows [first, first + n) as a call; `out` has room for n rows.
  ExpertCall Rows(int32_t first, int32_t n, ActivationType reply_type, std::byte* out) {
    const auto put = [](std::vector<std::byte>& to, const auto* data, int64_t count) {
      to.resize(static_cast<size_t>(count) * sizeof(*data) + 1);
      std::memcpy(to.data() + 1, data, static_cast<size_t>(count) * sizeof(*data));
      return to.data() + 1;
    };
    ExpertCall call;
    call.layer = 1;
    call.num_rows = n;
    call.top_k = top_k;
    call.expert_ids = put(id_bytes, ids.data() + first * top_k, int64_t{n} * top_k);
    call.weights = put(weight_bytes, weights.data() + first * top_k, int64_t{n} * top_k);
    const float* const values = x.data() + int64_t{first} * hidden_size;
    if (activation_type == ActivationType::kF32) {
      call.activations = put(x_bytes, values, int64_t{n} * hidden_size);
    } else {
      std::vector<BF16> narrow;
      for (int64_t i = 0; i < int64_t{n} * hidden_size; ++i) narrow.push_back(ToBF16(values[i]));
      call.activations = put(x_bytes, narrow.data(), int64_t{n} * hidden_size);
    }
    call.activation_type = activation_type;
    call.out = out;
    call.reply_type = reply_type;
    return call;
  }

  int32_t num_rows;
  int32_t top_k;
  int32_t hidden_size;
  ActivationType activation_type;
  std::vector<uint16_t> ids;
  std::vector<float> weights;
  std::vector<float> x;
  std::vector<std::byte> id_bytes, weight_bytes, x_bytes;
};

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};
using Out = std::unique_ptr<std::byte, Free>;

Out MakeOut(int64_t bytes) {
  Out out(
      static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))));
  std::memset(out.get(), 0x5a, static_cast<size_t>(bytes));
  return out;
}

const FfnKernels& Best() { return *AvailableKernels(ReadCpuFeatures()).back(); }

std::vector<float> RunF32(const ExpertTable& table, const FfnKernels& kernels, int num_threads,
                          size_t scratch_bytes, Call& call, int32_t first, int32_t n) {
  WorkerPool pool({.num_threads = num_threads});
  CpuExecutor executor({.max_scratch_bytes = scratch_bytes}, table, kernels, pool);
  const int64_t floats = int64_t{n} * call.hidden_size;
  const Out out = MakeOut(floats * 4);
  const absl::Status status = executor.Run(call.Rows(first, n, ActivationType::kF32, out.get()));
  EXPECT_TRUE(status.ok()) << status;
  std::vector<float> result(static_cast<size_t>(floats));
  std::memcpy(result.data(), out.get(), result.size() * 4);
  return result;
}

// `share` of the oracle's experts and width is not needed: the table says which.
void ExpectOracle(const ExpertTable& table, const FfnKernels& kernels, const Call& call,
                  const std::vector<float>& result, double reply_unit) {
  const ShardGeometry& g = table.geometry;
  for (int32_t row = 0; row < call.num_rows; ++row) {
    const auto x = call.x.begin() + int64_t{row} * g.hidden_size;
    std::vector<std::pair<uint16_t, float>> places;
    for (int32_t k = 0; k < call.top_k; ++k) {
      const auto place = static_cast<size_t>(row * call.top_k + k);
      if (call.ids[place] != kNone) places.push_back({call.ids[place], call.weights[place]});
    }
    std::vector<OracleValues> values;
    std::vector<float> weights;
    for (const auto& [id, weight] : places) {
      const auto expert = OracleOf(table.layers[1][static_cast<size_t>(id - g.first_expert)],
                                   g.hidden_size, g.num_shard_width);
      values.push_back(OracleDown(
          expert, OracleHidden(expert, std::vector<double>(x, x + g.hidden_size), kernels),
          kernels));
      weights.push_back(weight);
    }
    for (int32_t o = 0; o < g.hidden_size; ++o) {
      const float found = result[static_cast<size_t>(row * g.hidden_size + o)];
      if (places.empty()) {
        ASSERT_EQ(found, 0.0f) << "row " << row;
        continue;
      }
      if (o == 0) values = {OracleWeightedSum(values, weights)};
      const double expected = values[0].value[static_cast<size_t>(o)];
      const double bound = values[0].bound[static_cast<size_t>(o)];
      ASSERT_NEAR(found, expected, bound + reply_unit * (std::abs(expected) + bound))
          << "row " << row << " output " << o;
    }
  }
}

TEST(CpuExecutorTest, MatchesOracleInEveryType) {
  for (const FfnKernels* kernels : AvailableKernels(ReadCpuFeatures())) {
    for (const WeightType weight_type : {WeightType::kBF16, WeightType::kF32}) {
      for (const ActivationType in : {ActivationType::kBF16, ActivationType::kF32}) {
        SCOPED_TRACE(fmt::format("seed {} {} weights {} activations {}", kSeed, kernels->name,
                                 static_cast<int>(weight_type), static_cast<int>(in)));
        Model model(70, 21, 9, 4, weight_type);
        Call call(model, 23, 4, in);
        const std::vector<float> f32 = RunF32(model.table, *kernels, 2, 1 << 20, call, 0, 23);
        ASSERT_NO_FATAL_FAILURE(ExpectOracle(model.table, *kernels, call, f32, 0));

        WorkerPool pool({.num_threads = 2});
        CpuExecutor executor({}, model.table, *kernels, pool);
        const Out out = MakeOut(23 * 70 * 2);
        ASSERT_TRUE(executor.Run(call.Rows(0, 23, ActivationType::kBF16, out.get())).ok());
        for (size_t i = 0; i < f32.size(); ++i) {
          BF16 value;
          std::memcpy(&value, out.get() + i * 2, 2);
          ASSERT_EQ(value.bits, ToBF16(f32[i]).bits) << "the f32 sum, rounded once";
        }
      }
    }
  }
}

// Threads, scratch size, other rows: nothing changes a row's bits. Sizes large enough for the pool.
TEST(CpuExecutorTest, SameBitsWhateverRunsBeside) {
  for (const FfnKernels* kernels : AvailableKernels(ReadCpuFeatures())) {
    SCOPED_TRACE(fmt::format("seed {} {}", kSeed, kernels->name));
    Model model(200, 72, 13, 5, WeightType::kBF16);
    Call call(model, 150, 5, ActivationType::kBF16);
    const std::vector<float> expected =
        RunF32(model.table, *kernels, 1, 64 << 20, call, 0, call.num_rows);
    for (const int num_threads : {1, 2, 3, 5}) {
      for (const size_t scratch : {size_t{1}, size_t{20'000}, size_t{100'000}, size_t{64} << 20}) {
        EXPECT_EQ(RunF32(model.table, *kernels, num_threads, scratch, call, 0, call.num_rows),
                  expected)
            << num_threads << " threads, scratch " << scratch;
      }
    }
    for (int32_t row = 0; row < call.num_rows; row += 7) {
      const std::vector<float> alone = RunF32(model.table, *kernels, 2, 64 << 20, call, row, 1);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(),
                             expected.begin() + int64_t{row} * call.hidden_size))
          << "row " << row;
    }
  }
}

// What shards answer adds up to what one host answers, within the rounding of both.
TEST(CpuExecutorTest, ShardsAddUp) {
  Model model(96, 50, 12, 4, WeightType::kBF16);
  Call call(model, 17, 4, ActivationType::kF32);
  const std::vector<uint16_t> ids = call.ids;
  std::vector<double> by_width(17 * 96, 0.0);
  for (const auto& [first, width] : {std::pair{0, 16}, {16, 17}, {33, 17}}) {
    const ExpertTable shard = model.Shard(0, 12, first, width);
    const std::vector<float> part = RunF32(shard, Best(), 2, 1 << 20, call, 0, 17);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(shard, Best(), call, part, 0));
    for (size_t i = 0; i < part.size(); ++i) by_width[i] += part[i];
  }
  std::vector<double> by_experts(17 * 96, 0.0);
  for (const auto& [first, count] : {std::pair{0, 5}, {5, 7}}) {
    const ExpertTable shard = model.Shard(first, count, 0, 50);
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool here = ids[i] != kNone && ids[i] >= first && ids[i] < first + count;
      call.ids[i] = here ? ids[i] : kNone;
    }
    const std::vector<float> part = RunF32(shard, Best(), 2, 1 << 20, call, 0, 17);
    ASSERT_NO_FATAL_FAILURE(ExpectOracle(shard, Best(), call, part, 0));
    for (size_t i = 0; i < part.size(); ++i) by_experts[i] += part[i];
  }
  call.ids = ids;
  const std::vector<float> width_sums(by_width.begin(), by_width.end());
  const std::vector<float> expert_sums(by_experts.begin(), by_experts.end());
  // The oracle's bound for the whole holds for the parts' sum up to the sum's own rounding.
  ASSERT_NO_FATAL_FAILURE(ExpectOracle(model.table, Best(), call, width_sums, 0x1p-22));
  ASSERT_NO_FATAL_FAILURE(ExpectOracle(model.table, Best(), call, expert_sums, 0x1p-22));
}

TEST(CpuExecutorTest, CountsWhatItReads) {
  Model model(64, 16, 6, 3, WeightType::kBF16);
  Call call(model, 2, 3, ActivationType::kF32);
  call.ids = {0, 1, kNone, 1, 5, 2};
  WorkerPool pool({.num_threads = 1});
  CpuExecutor executor({}, model.table, Best(), pool);
  const Out out = MakeOut(2 * 64 * 4);
  ASSERT_TRUE(executor.Run(call.Rows(0, 2, ActivationType::kF32, out.get())).ok());
  EXPECT_EQ(executor.last_call().num_pairs, 5);
  EXPECT_EQ(executor.last_call().num_experts, 4);
  // Rows of gate and up are counted with their padding of one column, as they are read.
  EXPECT_EQ(executor.last_call().weight_bytes, 4u * (2 * 16 * 65 * 2 + 64 * 17 * 2));
}

TEST(CpuExecutorTest, RefusesAndWritesNothing) {
  Model model(64, 16, 6, 3, WeightType::kBF16);
  Call call(model, 4, 3, ActivationType::kF32);
  WorkerPool pool({.num_threads = 1});
  CpuExecutor executor({}, model.table, Best(), pool);
  const Out out = MakeOut(4 * 64 * 4);
  const auto refused = [&](auto change) {
    ExpertCall changed = call.Rows(0, 4, ActivationType::kF32, out.get());
    change(changed);
    const absl::Status status = executor.Run(changed);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    for (int i = 0; i < 4 * 64 * 4; ++i) EXPECT_EQ(out.get()[i], std::byte{0x5a});
    return std::string(ToStd(status.message()));
  };
  EXPECT_EQ(refused([](ExpertCall& c) { c.layer = 2; }), "layer 2, expected 0 to 1");
  EXPECT_EQ(refused([](ExpertCall& c) { c.layer = -1; }), "layer -1, expected 0 to 1");
  EXPECT_EQ(refused([](ExpertCall& c) { c.layer = 0; }), "layer 0 has no routed experts");
  EXPECT_EQ(refused([](ExpertCall& c) { c.num_rows = 0; }), "0 rows, expected 1 to 4096");
  EXPECT_EQ(refused([](ExpertCall& c) { c.num_rows = 4097; }), "4097 rows, expected 1 to 4096");
  EXPECT_EQ(refused([](ExpertCall& c) { c.top_k = 0; }), "top_k 0, expected 1 to 3");
  EXPECT_EQ(refused([](ExpertCall& c) { c.top_k = 4; }), "top_k 4, expected 1 to 3");
  call.ids[10] = 6;
  EXPECT_EQ(refused([](ExpertCall&) {}), "layer 1: row 3 place 1: expert 6, this shard has 0 to 5");
}

}  // namespace
}  // namespace banyan::expert
