#include "services/expert/runtime/packed_executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/strings.h"
#include "common/quant/packed_matrix.h"
#include "common/quant/reference.h"
#include "services/expert/kernels/kernel_table.h"

namespace banyan::expert {
namespace {

constexpr int32_t kHidden = 192;
constexpr int32_t kWidth = 160;
constexpr int32_t kExperts = 9;
constexpr int32_t kTopK = 4;
constexpr uint16_t kNone = 0xffff;
constexpr uint32_t kSeed = 11;

using Aligned = std::unique_ptr<std::byte, void (*)(void*)>;

Aligned Allocate(int64_t bytes) {
  return {
      static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))),
      &std::free};
}

// The width [first_width, first_width + width) of random experts, packed, and what it decodes to.
class PackedModel {
 public:
  PackedModel(PoolFormat format, int32_t first_width, int32_t width) {
    table.geometry = {.num_layers = 2,
                      .hidden_size = kHidden,
                      .num_experts = kExperts,
                      .moe_intermediate_size = kWidth,
                      .max_top_k = kTopK,
                      .first_expert = 0,
                      .num_shard_experts = kExperts,
                      .first_width = first_width,
                      .num_shard_width = width,
                      .max_rows = 4096};
    table.format = format;
    table.layers.resize(2);
    std::mt19937 random(kSeed);
    std::normal_distribution<float> normal(0, 0.05f);
    for (int32_t e = 0; e < kExperts; ++e) {
      const auto matrix = [&](int64_t rows, int64_t cols, int64_t first_row, int64_t num_rows,
                              int64_t first_col, int64_t num_cols) {
        std::vector<float> values(static_cast<size_t>(rows * cols));
        for (float& value : values) value = normal(random);
        const int64_t bytes = PackedMatrixBytes(format, num_rows, num_cols);
        storage_.push_back(Allocate(bytes));
        PackMatrix(format, {values.data() + first_row * cols + first_col, num_rows, num_cols, cols},
                   storage_.back().get());
        std::vector<float>& decoded =
            decoded_.emplace_back(static_cast<size_t>(num_rows * num_cols));
        UnpackMatrix(format, storage_.back().get(), num_rows, num_cols, decoded.data());
        table.expert_bytes += e == 0 ? static_cast<uint64_t>(bytes) : 0;
        return storage_.back().get();
      };
      PackedExpert expert;
      expert.gate_proj = matrix(kWidth, kHidden, first_width, width, 0, kHidden);
      expert.up_proj = matrix(kWidth, kHidden, first_width, width, 0, kHidden);
      expert.down_proj = matrix(kHidden, kWidth, 0, kHidden, first_width, width);
      table.layers[1].push_back(expert);
    }
  }

  // down(silu(gate x) * (up x)) in double.
  std::vector<double> Ffn(int32_t expert, const std::vector<double>& x) const {
    const int64_t width = table.geometry.num_shard_width;
    const auto reference = [&](int which, int64_t rows, int64_t cols) {
      return ReferenceMatrix{reinterpret_cast<const std::byte*>(
                                 decoded_[static_cast<size_t>(3 * expert + which)].data()),
                             DType::kF32, rows, cols, cols * 4};
    };
    std::vector<double> gate = ReferenceMatVec(reference(0, width, kHidden), x);
    const std::vector<double> up = ReferenceMatVec(reference(1, width, kHidden), x);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = ReferenceSilu(gate[i]) * up[i];
    return ReferenceMatVec(reference(2, kHidden, width), gate);
  }

  PackedTable table;

 private:
  std::vector<Aligned> storage_;
  std::vector<std::vector<float>> decoded_;  // gate, up, down of each expert
};

struct Rows {
  explicit Rows(int32_t n, ActivationType activation_type) : num_rows(n), type(activation_type) {
    std::mt19937 random(kSeed + static_cast<uint32_t>(n));
    std::normal_distribution<float> normal;
    std::vector<uint16_t> all(kExperts);
    std::iota(all.begin(), all.end(), uint16_t{0});
    for (int32_t row = 0; row < n; ++row) {
      std::shuffle(all.begin(), all.end(), random);
      for (int32_t k = 0; k < kTopK; ++k) {
        ids.push_back(k == 2 && row % 3 == 0 ? kNone : all[static_cast<size_t>(k)]);
        weights.push_back(normal(random));
      }
      for (int32_t i = 0; i < kHidden; ++i) {
        const float value = normal(random);
        x.push_back(type == ActivationType::kBF16 ? ToFloat(ToBF16(value)) : value);
        narrow.push_back(ToBF16(value));
      }
    }
  }

  // Rows [first, first + n), reply in f32.
  std::vector<float> Run(ExpertExecutor& executor, int32_t first, int32_t n) const {
    Aligned out = Allocate(int64_t{n} * kHidden * 4);
    ExpertCall call;
    call.layer = 1;
    call.num_rows = n;
    call.top_k = kTopK;
    call.expert_ids = reinterpret_cast<const std::byte*>(ids.data() + first * kTopK);
    call.weights = reinterpret_cast<const std::byte*>(weights.data() + first * kTopK);
    call.activations = type == ActivationType::kF32
                           ? reinterpret_cast<const std::byte*>(x.data() + first * kHidden)
                           : reinterpret_cast<const std::byte*>(narrow.data() + first * kHidden);
    call.activation_type = type;
    call.out = out.get();
    call.reply_type = ActivationType::kF32;
    const absl::Status status = executor.Run(call);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> values(static_cast<size_t>(n) * kHidden);
    std::memcpy(values.data(), out.get(), values.size() * 4);
    return values;
  }

  int32_t num_rows;
  ActivationType type;
  std::vector<uint16_t> ids;
  std::vector<float> weights;
  std::vector<float> x;
  std::vector<BF16> narrow;
};

using Case = std::tuple<PoolFormat, ActivationType, std::string>;

class PackedExecutorTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto& [format, type, tier] = GetParam();
    const CpuFeatures features = ReadCpuFeatures();
    kernels_ = {FindPackedKernels(format, Precision::kExact, tier.c_str(), features),
                FindPackedKernels(format, Precision::kFast, tier.c_str(), features)};
    ASSERT_TRUE(kernels_.exact != nullptr && kernels_.fast != nullptr) << PoolFormatName(format);
  }
  std::unique_ptr<PackedExecutor> Make(const PackedModel& model, WorkerPool& pool,
                                       GroupedExecutor::Options options = {}) const {
    return std::make_unique<PackedExecutor>(options, model.table, kernels_, kScalarKernels, pool);
  }
  PackedKernelPair kernels_;
};

// Within what 16 or 8 bits of an activation are worth: against the decoded weights in double.
TEST_P(PackedExecutorTest, MatchesTheOracle) {
  const auto& [format, type, tier] = GetParam();
  const int32_t half = static_cast<int32_t>(PoolFormatGroup(format)) * 2;
  for (const auto& [first, width] : {std::pair{0, kWidth}, {half, kWidth - half}}) {
    const PackedModel model(format, first, width);
    WorkerPool pool({.num_threads = 2});
    const auto executor = Make(model, pool);
    for (const int32_t n : {1, 7, 40}) {
      const Rows rows(n, type);
      const std::vector<float> found = rows.Run(*executor, 0, n);
      double error = 0;
      double norm = 0;
      for (int32_t row = 0; row < n; ++row) {
        const std::vector<double> x(rows.x.begin() + row * kHidden,
                                    rows.x.begin() + (row + 1) * kHidden);
        std::vector<double> expected(kHidden);
        for (int32_t k = 0; k < kTopK; ++k) {
          const uint16_t id = rows.ids[static_cast<size_t>(row * kTopK + k)];
          if (id == kNone) continue;
          const std::vector<double> y = model.Ffn(id, x);
          for (size_t i = 0; i < y.size(); ++i) {
            expected[i] += double{rows.weights[static_cast<size_t>(row * kTopK + k)]} * y[i];
          }
        }
        for (size_t i = 0; i < expected.size(); ++i) {
          const double difference = expected[i] - found[static_cast<size_t>(row) * kHidden + i];
          error += difference * difference;
          norm += expected[i] * expected[i];
        }
      }
      // The largest of 32 normal numbers is about 2.5; a step of 2^-15 or 1/127 of it, uniform
      // rounding, twice on the way: 6e-5 and 1.2 % of the norm. bf16 rounds by 2^-9 at most.
      EXPECT_LE(std::sqrt(error / norm), type == ActivationType::kF32 ? 2e-4 : 0.025)
          << "rows " << n << " width " << width;
    }
  }
}

TEST_P(PackedExecutorTest, ARowsBitsDependOnNothingElse) {
  const auto& [format, type, tier] = GetParam();
  const PackedModel model(format, 0, kWidth);
  const Rows rows(300, type);  // some 120 for each expert: several groups
  WorkerPool one({.num_threads = 1});
  WorkerPool four({.num_threads = 4});
  const auto alone = Make(model, one);
  std::vector<float> expected;
  for (int32_t row = 0; row < rows.num_rows; ++row) {
    const std::vector<float> values = rows.Run(*alone, row, 1);
    expected.insert(expected.end(), values.begin(), values.end());
  }
  EXPECT_EQ(rows.Run(*alone, 0, rows.num_rows), expected);
  const auto threaded = Make(model, four);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(rows.Run(*threaded, 0, rows.num_rows), expected);
  const auto in_blocks = Make(model, four, {.max_scratch_bytes = 20'000});
  EXPECT_EQ(rows.Run(*in_blocks, 0, rows.num_rows), expected);
  const auto by_expert = Make(model, four, {.min_pairs_by_expert = 1});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(rows.Run(*by_expert, 0, rows.num_rows), expected);
  EXPECT_EQ(rows.Run(*by_expert, 7, 1),
            std::vector<float>(expected.begin() + 7 * kHidden, expected.begin() + 8 * kHidden));
  const auto both = Make(model, four, {.max_scratch_bytes = 20'000, .min_pairs_by_expert = 1});
  const auto in_slices = Make(model, four, {.min_pairs_by_expert = 1, .max_product_bytes = 40'000});
  EXPECT_EQ(rows.Run(*in_slices, 0, rows.num_rows), expected);
  EXPECT_EQ(rows.Run(*both, 0, rows.num_rows), expected);
}

TEST_P(PackedExecutorTest, CountsWhatItReads) {
  const auto& [format, type, tier] = GetParam();
  const PackedModel model(format, 0, kWidth);
  WorkerPool pool({.num_threads = 2});
  const auto executor = Make(model, pool);
  const Rows rows(1, type);
  rows.Run(*executor, 0, 1);
  const GroupedExecutor::CallStats& stats = executor->last_call();
  EXPECT_EQ(stats.num_experts, 3);
  EXPECT_EQ(stats.num_pairs, 3);
  EXPECT_EQ(stats.weight_bytes, 3 * model.table.expert_bytes);
  // Experts with several groups count once.
  const Rows many(300, type);
  many.Run(*executor, 0, 300);
  EXPECT_EQ(stats.num_experts, kExperts);
  EXPECT_EQ(stats.num_pairs, 300 * kTopK - 100);
  EXPECT_EQ(stats.weight_bytes, uint64_t{kExperts} * model.table.expert_bytes);
}

// Kernels of which one tile, the first that a certain thread takes, does not go on before all other
// tiles of its half are done: a thread that has lost its CPU.
class StoppedThread {
 public:
  enum class Half { kNeither, kGateUp, kDown };

  // Wraps the kernels; one at a time.
  explicit StoppedThread(const PackedKernels& kernels) : real_(kernels), wrapped_(kernels) {
    wrapped_.gate_up = [](const PackedGateUpArgs& args) {
      here->Call(Half::kGateUp, [&] { here->real_.gate_up(args); });
    };
    wrapped_.down = [](const PackedDownArgs& args) {
      here->Call(Half::kDown, [&] { here->real_.down(args); });
    };
    here = this;  // the last one made
  }

  const PackedKernels& kernels() const { return wrapped_; }
  int calls(Half half) const { return calls_[static_cast<size_t>(half)]; }
  bool stopped() const { return taken_.HasBeenNotified(); }

  // Before the call: in `half`, the thread that makes the call or a worker, until so many kernels
  // of others have ended.
  void Stop(Half half, bool caller, int others) {
    half_ = half;
    caller_ = caller;
    others_left_ = others;
  }

 private:
  static constexpr absl::Duration kForever = absl::Seconds(60);

  template <typename Kernel>
  void Call(Half half, const Kernel& kernel) {
    calls_[static_cast<size_t>(half)].fetch_add(1);
    if (half != half_) return kernel();
    const bool is_caller = std::this_thread::get_id() == caller_id_;
    if (is_caller == caller_ && !one_stops_.exchange(true)) {
      stopped_id_ = std::this_thread::get_id();
      taken_.Notify();
      EXPECT_TRUE(others_done_.WaitForNotificationWithTimeout(kForever))
          << "tiles wait for the stopped thread: " << others_left_;
      return kernel();
    }
    // Nobody else begins, and so ends all tiles, before the one to be stopped has one.
    EXPECT_TRUE(taken_.WaitForNotificationWithTimeout(kForever));
    kernel();
    if (std::this_thread::get_id() != stopped_id_.load() && others_left_.fetch_sub(1) == 1) {
      others_done_.Notify();
    }
  }

  inline static StoppedThread* here = nullptr;
  const PackedKernels real_;
  PackedKernels wrapped_;
  std::array<std::atomic<int>, 3> calls_{};
  Half half_ = Half::kNeither;
  bool caller_ = false;
  const std::thread::id caller_id_ = std::this_thread::get_id();
  std::atomic<std::thread::id> stopped_id_{};
  std::atomic<bool> one_stops_{false};
  std::atomic<int> others_left_{0};
  absl::Notification taken_, others_done_;
};

// A call waits for the one tile that a descheduled thread holds, and for nothing else of it: all
// other tiles are done by the others meanwhile. So a thread that is away for a millisecond costs a
// call a millisecond at most.
TEST_P(PackedExecutorTest, AStoppedThreadHoldsUpOneTile) {
  using Half = StoppedThread::Half;
  const auto& [format, type, tier] = GetParam();
  const PackedModel model(format, 0, kWidth);
  const Rows rows(40, type);
  PackedKernelPair pair = kernels_;
  const PackedKernels*& used = type == ActivationType::kF32 ? pair.exact : pair.fast;
  const PackedKernels& real = *used;
  WorkerPool pool({.num_threads = 3});
  const auto run = [&](StoppedThread& thread) {
    used = &thread.kernels();
    PackedExecutor executor({}, model.table, pair, kScalarKernels, pool);
    return rows.Run(executor, 0, rows.num_rows);
  };
  StoppedThread counting(real);
  const std::vector<float> expected = run(counting);
  for (const Half half : {Half::kGateUp, Half::kDown}) {
    // A tile of down goes over the experts, a kernel each.
    const int of_a_tile = half == Half::kGateUp ? 1 : kExperts;
    const int calls = counting.calls(half);
    ASSERT_GE(calls, 4 * of_a_tile);
    for (const bool caller : {true, false}) {
      SCOPED_TRACE(fmt::format("down {} caller {}", half == Half::kDown, caller));
      StoppedThread thread(real);
      thread.Stop(half, caller, calls - of_a_tile);
      EXPECT_EQ(run(thread), expected);
      EXPECT_TRUE(thread.stopped());
      EXPECT_EQ(thread.calls(half), calls);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedExecutorTest,
                         ::testing::Combine(::testing::Values(PoolFormat::kBF16, PoolFormat::kInt8,
                                                              PoolFormat::kNF4, PoolFormat::kInt4),
                                            ::testing::Values(ActivationType::kF32,
                                                              ActivationType::kBF16),
                                            ::testing::Values("scalar", "amx")),
                         [](const auto& tested) {
                           return fmt::format(
                               "{}_{}_{}", PoolFormatName(std::get<0>(tested.param)),
                               std::get<1>(tested.param) == ActivationType::kF32 ? "f32" : "bf16",
                               std::get<2>(tested.param));
                         });

}  // namespace
}  // namespace banyan::expert
