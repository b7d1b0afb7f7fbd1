#include "services/trunk/model/prompt_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/fakes/counting_backend.h"

namespace banyan::trunk {
namespace {

constexpr int32_t kExperts = 8;
constexpr int32_t kTopK = 2;
constexpr int32_t kMaxRows = 512;
constexpr int64_t kExpertBytes = 64;

// What it was told, and what it was asked for.
class ListeningDevice : public test::CountingBackend {
 public:
  void HostExperts(int32_t, const HostExpertsArgs& args) override {
    asked.clear();
    for (const HostExpert& expert : args.experts) asked.push_back(expert.weights);
  }
  void WillReadHostExperts(const HostExpertWeights& next) override {
    announced.assign(next.experts.begin(), next.experts.end());
  }
  std::vector<const std::byte*> asked, announced;
};

class PromptExpertsTest : public ::testing::Test {
 protected:
  // Two slices of two layers and a dense one between.
  PromptExpertPool Pool(bool by_width) {
    PromptExpertPool pool;
    pool.width = 32;
    pool.expert_bytes = kExpertBytes;
    pool.own_experts = {3, 5, 6, 6};
    const int32_t experts = by_width ? kExperts : kExperts / 2;
    for (int32_t i : {0, 1}) {
      PromptExpertPool::Slice slice;
      slice.first_expert = by_width ? 0 : i * experts;
      slice.num_experts = experts;
      const std::byte* const first = memory_.data() + i * 2 * kExperts * kExpertBytes;
      slice.layers = {first, nullptr, first + kExperts * kExpertBytes};
      pool.slices.push_back(slice);
    }
    return pool;
  }

  // A step of these rows of a prompt of so many tokens; every expert has some but `without`.
  void RunLayer(PromptExperts* experts, int32_t layer, int32_t num_rows, int32_t prompt_tokens,
                int32_t without) {
    PlanSegment segment;
    segment.num_rows = num_rows;
    segment.prompt_tokens = prompt_tokens;
    StepPlan plan;
    plan.num_rows = num_rows;
    plan.segments = {&segment, 1};
    ASSERT_TRUE(experts->BeginStep(plan));
    std::vector<uint16_t> ids;
    for (int32_t i = 0; i < num_rows * kTopK; ++i) {
      ids.push_back(static_cast<uint16_t>(i % kExperts == without ? kExperts - 1 : i % kExperts));
    }
    const std::vector<float> weights(ids.size(), 0.5f);
    experts->Take(num_rows, ids.data(), weights.data());
    Activations a;
    a.expert_rows_dtype = DType::kBF16;
    device_.announced.clear();
    experts->Queue(layer, num_rows, a, &device_);
    EXPECT_TRUE(device_.announced.empty());
    experts->Announce(layer, &device_);
  }

  static ModelConfig Config() {
    ModelConfig config;
    config.hidden_size = 64;
    config.num_experts = kExperts;
    config.num_experts_per_tok = kTopK;
    return config;
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(4 * kExperts * kExpertBytes);
  ListeningDevice device_;
};

// The next layer that has experts asks for what was announced, in its order, and for nothing else.
TEST_F(PromptExpertsTest, AnnouncesWhatTheNextLayerAsksFor) {
  for (const bool by_width : {true, false}) {
    for (const int32_t tokens : {600, 1500, 5000}) {
      PromptExperts experts(Config(), kMaxRows, Pool(by_width));
      RunLayer(&experts, 0, kMaxRows, tokens, kExperts);
      const std::vector<const std::byte*> announced = device_.announced;
      const std::vector<const std::byte*> first_asked = device_.asked;
      RunLayer(&experts, 2, kMaxRows, tokens, kExperts);
      EXPECT_EQ(device_.asked, announced) << by_width << ", " << tokens;
      EXPECT_EQ(announced.size(), first_asked.size());
      EXPECT_NE(announced, first_asked);
      // Behind the last layer nothing is known.
      EXPECT_TRUE(device_.announced.empty());

      // An expert that no row has chosen is only left out.
      RunLayer(&experts, 2, kMaxRows, tokens, 1);
      EXPECT_EQ(device_.asked.size(), announced.size() - (by_width ? 2 : 1));
      EXPECT_TRUE(std::includes(announced.begin(), announced.end(), device_.asked.begin(),
                                device_.asked.end()));
    }
  }
}

// Of few rows most experts may have none.
TEST_F(PromptExpertsTest, AnnouncesNothingOfFewRows) {
  PromptExperts experts(Config(), kMaxRows, Pool(true));
  RunLayer(&experts, 0, 100, 600, kExperts);
  EXPECT_FALSE(device_.asked.empty());
  EXPECT_TRUE(device_.announced.empty());
}

}  // namespace
}  // namespace banyan::trunk
