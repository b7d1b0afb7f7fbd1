#include "services/trunk/sampling/logprobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace banyan::trunk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LogprobsTest, EqualsLogSoftmaxOverTheWholeRow) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  for (const size_t size : {1u, 17u, 1187u, 151936u}) {
    std::vector<float> logits(size);
    for (float& x : logits) x = normal(random);
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x));
    const auto token = static_cast<int32_t>(size / 3);
    const auto result = ComputeLogprobs(logits, static_cast<int32_t>(size), token, 5);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->token_id, token);
    EXPECT_NEAR(static_cast<double>(result->logprob),
                static_cast<double>(logits[static_cast<size_t>(token)]) - std::log(sum), 4e-6);
    ASSERT_EQ(result->top_ids.size(), std::min<size_t>(5, size));
    for (size_t i = 0; i < result->top_ids.size(); ++i) {
      const float logit = logits[static_cast<size_t>(result->top_ids[i])];
      EXPECT_NEAR(static_cast<double>(result->top_logprobs[i]),
                  static_cast<double>(logit) - std::log(sum), 4e-6);
      if (i > 0) {
        EXPECT_LE(result->top_logprobs[i], result->top_logprobs[i - 1]);
      }
    }
  }
}

TEST(LogprobsTest, TiesByLowerIdAndPaddingOnlyInTheNormaliser) {
  const std::vector<float> logits = {1, 2, 2, 0, 9};
  const auto result = ComputeLogprobs(logits, 4, 3, 3);
  ASSERT_TRUE(result.ok());
  EXPECT_THAT(result->top_ids, ElementsAre(1, 2, 0));
  const double sum = std::exp(1.0) + 2 * std::exp(2.0) + 1 + std::exp(9.0);
  EXPECT_NEAR(static_cast<double>(result->logprob), -std::log(sum), 1e-6);
  EXPECT_TRUE(ComputeLogprobs(logits, 4, 3, 0)->top_ids.empty());
  EXPECT_EQ(ComputeLogprobs(logits, 4, 3, 20)->top_ids.size(), 4u);
}

TEST(LogprobsTest, LargeLogitsDoNotOverflow) {
  const std::vector<float> logits = {3e4f, 2e4f, -3e4f};
  EXPECT_EQ(ComputeLogprobs(logits, 3, 0, 0)->logprob, 0.0f);
  EXPECT_EQ(ComputeLogprobs(logits, 3, 2, 0)->logprob, -6e4f);
}

TEST(LogprobsTest, NonFiniteIsAnError) {
  const std::vector<float> logits = {0, std::numeric_limits<float>::quiet_NaN(), 1};
  const auto result = ComputeLogprobs(logits, 3, 2, 1);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("token id 2"));
}

}  // namespace
}  // namespace banyan::trunk
