// Operations that do several at once give the same bits as these one after the other.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/quant/bf16.h"
#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

class FusedTest : public OpsFixture {
 protected:
  // On the device itself: shared buffers have no host arrays.
  void SetUp() override {
    OpsFixture::SetUp();
    device_ = test::MakeBackend(GetParam(), &pool_);
    ASSERT_TRUE(device_
                    ->Reserve({.max_rows = 64,
                               .max_segments = 64,
                               .max_position = 64,
                               .num_experts = 512,
                               .attention = {},
                               .delta_net = {}})
                    .ok());
  }

  template <typename T>
  T* Place(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    const auto memory = device_->AllocateDevice(bytes);
    EXPECT_TRUE(memory.ok());
    EXPECT_TRUE(device_->Upload(values.data(), bytes, *memory).ok());
    return reinterpret_cast<T*>(*memory);
  }

  template <typename T>
  std::vector<T> Fetch(const void* device, size_t count) {
    std::vector<T> values(count);
    EXPECT_TRUE(device_->ReadBack(device, count * sizeof(T), values.data()).ok());
    return values;
  }

  SharedBuffer NewShared(size_t bytes) {
    const auto buffer = device_->AllocateShared(bytes);
    EXPECT_TRUE(buffer.ok());
    return *buffer;
  }

  std::unique_ptr<Backend> device_;
};

// Rows as they are and rounded to bf16.
TEST_P(FusedTest, RoutesToTheHost) {
  for (const auto& [experts, top_k, width] :
       {std::tuple(512, 10, 2048), {16, 4, 96}, {130, 8, 33}}) {
    for (int32_t rows : {1, 2, 16, 17, 64}) {
      const auto r = static_cast<size_t>(rows);
      const size_t chosen = r * static_cast<size_t>(top_k);
      const size_t inputs = r * static_cast<size_t>(width);
      const float* logits = Place(Random(r * static_cast<size_t>(experts), 2));
      std::vector<float> input = Random(inputs);
      input[inputs / 2] = -NAN;
      std::vector<uint16_t> rounded;
      for (const float value : input) rounded.push_back(ToBF16(value).bits);
      RouteArgs args = {.num_experts = experts,
                        .top_k = top_k,
                        .hidden_size = width,
                        .logits = logits,
                        .rows = NewShared(inputs * sizeof(float)),
                        .ids = NewShared(chosen * sizeof(uint16_t)),
                        .weights = NewShared(chosen * sizeof(float))};
      ASSERT_TRUE(device_->Upload(input.data(), inputs * sizeof(float), args.rows.device).ok());
      args.input = reinterpret_cast<const float*>(args.rows.device);
      auto* const ids = Place(std::vector<uint16_t>(chosen));
      auto* const weights = Place(std::vector<float>(chosen));
      device_->RouterTopK(rows, experts, top_k, true, logits, ids, weights);
      device_->RouteToHost(rows, args);
      ASSERT_TRUE(device_->AwaitHost().ok());
      EXPECT_EQ(std::memcmp(args.rows.host, input.data(), inputs * sizeof(float)), 0);
      const auto expected_ids = Fetch<uint16_t>(ids, chosen);
      const auto expected_weights = Fetch<float>(weights, chosen);
      EXPECT_EQ(std::memcmp(args.ids.host, expected_ids.data(), chosen * sizeof(uint16_t)), 0);
      EXPECT_EQ(std::memcmp(args.weights.host, expected_weights.data(), chosen * sizeof(float)), 0);
      EXPECT_EQ(Fetch<uint16_t>(args.ids.device, chosen), expected_ids);
      EXPECT_TRUE(SameBits(Fetch<float>(args.weights.device, chosen), expected_weights));

      args.rows = NewShared(inputs * sizeof(uint16_t));
      args.rows_dtype = DType::kBF16;
      std::memset(args.ids.host, 0, chosen * sizeof(uint16_t));
      std::memset(args.weights.host, 0, chosen * sizeof(float));
      device_->RouteToHost(rows, args);
      ASSERT_TRUE(device_->AwaitHost().ok());
      EXPECT_EQ(std::memcmp(args.rows.host, rounded.data(), inputs * sizeof(uint16_t)), 0)
          << rows << " x " << width;
      EXPECT_EQ(std::memcmp(args.ids.host, expected_ids.data(), chosen * sizeof(uint16_t)), 0);
      EXPECT_EQ(std::memcmp(args.weights.host, expected_weights.data(), chosen * sizeof(float)), 0);
    }
  }
}

TEST_P(FusedTest, CombinesFromTheHostAndNorms) {
  for (int32_t width : {2048, 96, 33}) {
    for (int32_t rows : {1, 2, 16, 17, 64}) {
      const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(width);
      const std::vector<float> hidden = Random(count);
      const std::vector<float> routed = Random(count);
      CombineArgs args = {.hidden_size = width,
                          .routed = NewShared(count * sizeof(float)),
                          .shared = Place(Random(count)),
                          .gate_logit = Place(Random(static_cast<size_t>(rows))),
                          .hidden = Place(hidden),
                          .eps = 1e-6f,
                          .norm_weight = Place(Random(static_cast<size_t>(width), 0.1f)),
                          .normed = Place(std::vector<float>(count, NAN))};
      float* const expected_hidden = Place(hidden);
      float* const expected_normed = Place(std::vector<float>(count, NAN));
      device_->MoeCombine(rows, width, Place(routed), args.shared, args.gate_logit,
                          expected_hidden);
      device_->RmsNorm(rows, width, args.eps, args.norm_weight, nullptr, expected_hidden,
                       expected_normed);
      std::memcpy(args.routed.host, routed.data(), count * sizeof(float));
      // Twice, so that the count of releases goes on.
      device_->CombineFromHost(rows, args);
      device_->ReleaseToDevice();
      EXPECT_TRUE(SameBits(Fetch<float>(args.hidden, count), Fetch<float>(expected_hidden, count)))
          << rows << " x " << width;
      EXPECT_TRUE(SameBits(Fetch<float>(args.normed, count), Fetch<float>(expected_normed, count)))
          << rows << " x " << width;
    }
  }
}

// Steps of three layers, recorded where the device does that and run again, with other hand-overs
// between them: every sum is of what the host wrote for that layer of that step.
TEST_P(FusedTest, AnswersAreThoseOfTheirLayer) {
  constexpr int32_t kWidth = 2048;
  constexpr int32_t kLayers = 3;
  for (int32_t rows : {1, 3, 16, 40}) {  // the last by the copy engine
    const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(kWidth);
    std::vector<PlanSegment> segments;
    for (int32_t r = 0; r < rows; ++r) {
      segments.push_back({.first_row = r, .num_rows = 1, .first_position = 5, .slot = r});
    }
    StepPlan plan;
    plan.num_rows = rows;
    plan.segments = segments;
    const std::vector<float> shared = Random(count);
    const SharedBuffer sent = NewShared(count * sizeof(float));
    const SharedBuffer other = NewShared(64);
    float* const hidden = Place(std::vector<float>(count));
    const CombineArgs args = {.hidden_size = kWidth,
                              .routed = NewShared(count * sizeof(float)),
                              .shared = Place(shared),
                              .gate_logit = Place(std::vector<float>(segments.size(), 100.0f)),
                              .hidden = hidden,
                              .eps = 1e-6f,
                              .norm_weight = Place(std::vector<float>(kWidth)),
                              .normed = Place(std::vector<float>(count))};
    const SharedCopy rows_sent[] = {{sent, count * sizeof(float)}};
    const SharedCopy other_copy[] = {{other, 64}};
    std::vector<float> expected(count);
    for (int32_t step = 0; step < 6; ++step) {
      const auto answer = [&] {
        ASSERT_TRUE(device_->AwaitHost().ok());
        const std::vector<float> routed = Random(count);
        std::memcpy(args.routed.host, routed.data(), count * sizeof(float));
        device_->ReleaseToDevice();
        // The gate is one.
        for (size_t i = 0; i < count; ++i) expected[i] += std::fma(1.0f, shared[i], routed[i]);
      };
      device_->BeginStep(plan);
      const Backend::Recording recording = device_->BeginRecording();
      if (recording == Backend::Recording::kRecord) {
        EXPECT_EQ(step, 0);
        for (int32_t layer = 0; layer < kLayers; ++layer) {
          device_->CopyToHost(rows_sent);
          device_->CombineFromHost(rows, args);
        }
        device_->EndRecording();
      }
      for (int32_t layer = 0; layer < kLayers; ++layer) {
        if (recording == Backend::Recording::kNo) device_->CopyToHost(rows_sent);
        answer();
        if (recording == Backend::Recording::kNo) device_->CombineFromHost(rows, args);
      }
      ASSERT_TRUE(device_->Synchronize().ok());
      EXPECT_TRUE(SameBits(Fetch<float>(hidden, count), expected)) << rows << ", step " << step;
      // As many as the number of the step, not recorded, one way or the other.
      for (int32_t i = 0; i < step; ++i) {
        if (step % 2 == 0) {
          device_->CopyToHost(other_copy);
          ASSERT_TRUE(device_->AwaitHost().ok());
        } else {
          device_->CopyToDevice(other_copy);
          device_->ReleaseToDevice();
        }
      }
    }
  }
}

// One token for each sequence, at the start or not, slots in no order; then another.
TEST_P(FusedTest, ConvolutionAndRecurrenceAtOnce) {
  for (const auto& [heads, ratio, dim, taps] :
       {std::tuple(3, 2, 128, 4), {2, 1, 128, 4}, {2, 2, 64, 4}, {1, 3, 128, 4}, {2, 2, 128, 3}}) {
    const DeltaNetShape shape = {.num_key_heads = heads,
                                 .num_value_heads = heads * ratio,
                                 .key_head_dim = dim,
                                 .value_head_dim = dim,
                                 .conv_taps = taps,
                                 .eps = 1e-6f};
    auto backend = test::MakeBackendOnHostArrays(GetParam(), &pool_);
    ASSERT_TRUE(backend
                    ->Reserve({.max_rows = 4,
                               .max_segments = 4,
                               .max_position = 64,
                               .num_experts = 1,
                               .attention = {},
                               .delta_net = shape})
                    .ok());
    constexpr int32_t kSlots = 5;
    const std::vector<float> weight = Random(static_cast<size_t>(taps * shape.conv_dim()), 0.5f);
    std::vector<float> rate = Random(static_cast<size_t>(shape.num_value_heads));
    for (float& value : rate) value = -std::exp(value);
    const std::vector<float> bias = Random(static_cast<size_t>(shape.num_value_heads));
    const std::vector<float> norm = Random(static_cast<size_t>(dim));
    struct State {
      std::vector<float> conv, recurrent;
    };
    State apart = {Random(static_cast<size_t>(kSlots * shape.conv_state_floats())),
                   Random(static_cast<size_t>(kSlots * shape.state_floats()), 0.1f)};
    State at_once = apart;
    for (int32_t position : {0, 7}) {
      const PlanSegment segments[] = {
          {.first_row = 0, .num_rows = 1, .first_position = position, .slot = 3},
          {.first_row = 1, .num_rows = 1, .first_position = 5, .slot = 0},
          {.first_row = 2, .num_rows = 1, .first_position = 1, .slot = 4}};
      StepPlan plan;
      plan.num_rows = 3;
      plan.segments = segments;
      const std::vector<float> qkvz = Random(static_cast<size_t>(3 * shape.qkvz_dim()));
      const std::vector<float> ba = Random(static_cast<size_t>(3 * 2 * shape.num_value_heads), 2);
      const auto run = [&](State* state, bool fused) {
        std::vector<float> qkv(static_cast<size_t>(3 * shape.conv_dim()));
        std::vector<float> decay(static_cast<size_t>(3 * shape.num_value_heads));
        std::vector<float> beta(decay.size());
        std::vector<float> out(static_cast<size_t>(3 * shape.value_dim()), NAN);
        const CausalConvArgs conv = {.shape = shape,
                                     .qkvz = qkvz.data(),
                                     .ba = ba.data(),
                                     .weight = weight.data(),
                                     .neg_decay_rate = rate.data(),
                                     .dt_bias = bias.data(),
                                     .conv_states = state->conv.data(),
                                     .qkv = qkv.data(),
                                     .log_decay = decay.data(),
                                     .beta = beta.data()};
        const DeltaNetArgs delta = {.shape = shape,
                                    .qkv = qkv.data(),
                                    .qkvz = qkvz.data(),
                                    .log_decay = decay.data(),
                                    .beta = beta.data(),
                                    .norm_weight = norm.data(),
                                    .states = state->recurrent.data(),
                                    .out = out.data()};
        backend->BeginStep(plan);
        if (fused) {
          backend->ConvDeltaNet(conv, delta);
        } else {
          backend->CausalConv(conv);
          backend->DeltaNet(delta);
        }
        return out;
      };
      const std::vector<float> expected = run(&apart, false);
      const std::vector<float> found = run(&at_once, true);
      EXPECT_TRUE(SameBits(found, expected)) << heads << " " << ratio << " at " << position;
      EXPECT_TRUE(SameBits(at_once.conv, apart.conv)) << heads << " " << ratio;
      EXPECT_TRUE(SameBits(at_once.recurrent, apart.recurrent)) << heads << " " << ratio;
    }
  }
}

TEST_P(FusedTest, CopiesWithinTheDevice) {
  const std::vector<float> values = Random(1000);
  float* const from = Place(values);
  float* const to = Place(std::vector<float>(1000));
  device_->CopyWithin(from + 8, 900 * sizeof(float), to + 16);
  const std::vector<float> found = Fetch<float>(to, 1000);
  EXPECT_EQ(found[15], 0.0f);
  EXPECT_EQ(found[916], 0.0f);
  EXPECT_TRUE(SameBits({found.begin() + 16, found.begin() + 916},
                       {values.begin() + 8, values.begin() + 908}));
}

BANYAN_FOR_ALL_BACKENDS(FusedTest);

}  // namespace
}  // namespace banyan::trunk
