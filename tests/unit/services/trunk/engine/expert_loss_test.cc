// Experts that vanish in the middle of steps, and return or do not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/unit/services/trunk/engine/engine_harness.h"

namespace banyan::trunk {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The forward pass fails as the experts do.
struct LossHarness : Harness {
  LossHarness() {
    forward.on_forward = [this](const Step& step) {
      if (step.step_id == lose_at) experts.SetReady(false);
      return experts.Ready();
    };
  }
  int64_t lose_at = -1;
};

TEST(ExpertLossTest, RequestsGoOnWithTheSameTokensWhenTheExpertsReturn) {
  LossHarness harness;
  harness.lose_at = 5;
  harness.Start();
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingListener>> listeners;
  for (uint32_t i = 0; i < 4; ++i) {
    requests.push_back(MakeRequest(MakePrompt(100 + static_cast<int32_t>(i) * 63, i), 30,
                                   {.temperature = 1.0f, .seed = i}));
    listeners.push_back(harness.Submit(requests.back()));
  }
  harness.experts.AwaitWaits(3);
  for (const auto& listener : listeners) EXPECT_FALSE(listener->finished());
  harness.experts.SetReady(true);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_TRUE(listeners[i]->Wait().status.ok());
    EXPECT_EQ(listeners[i]->tokens(), ExpectedTokens(requests[i])) << i;
  }
  EXPECT_TRUE(harness.AllFree());
  EXPECT_GE(harness.Counter("banyan_trunk_preemptions_total", {{"reason", "experts"}}), 1);
}

TEST(ExpertLossTest, PromptLogprobsComputedBeforeTheLossAreNotRepeated) {
  LossHarness harness;
  harness.options.max_batch_tokens = 128;  // 300 tokens in three steps
  harness.lose_at = 2;
  harness.Start();
  Request request = MakeRequest(MakePrompt(300), 4);
  request.prompt_logprobs = true;
  const auto interrupted = harness.Submit(request);
  harness.experts.AwaitWaits(1);
  harness.experts.SetReady(true);
  interrupted->Wait();
  const auto smooth = harness.Submit(request);
  smooth->Wait();
  EXPECT_EQ(interrupted->tokens(), ExpectedTokens(request));
  const std::vector<TokenLogprobs> expected = smooth->prompt_logprobs();
  const std::vector<TokenLogprobs> records = interrupted->prompt_logprobs();
  ASSERT_EQ(records.size(), 299u);
  ASSERT_EQ(expected.size(), 299u);
  for (size_t i = 0; i < records.size(); ++i) {
    ASSERT_EQ(records[i].token_id, request.prompt_ids[i + 1]);
    ASSERT_EQ(records[i].logprob, expected[i].logprob);
  }
}

TEST(ExpertLossTest, RequestsFailAfterTheWaitAndLaterOnesAreServed) {
  LossHarness harness;
  harness.lose_at = 2;
  harness.options.expert_wait = absl::Seconds(10);
  harness.Start();
  const auto affected = harness.Submit(MakeRequest(MakePrompt(10), 100));
  harness.experts.AwaitWaits(1);
  harness.clock.Advance(absl::Seconds(6));
  const Request request = MakeRequest(MakePrompt(20), 5);
  const auto later = harness.Submit(request);
  harness.clock.Advance(absl::Seconds(4));
  EXPECT_EQ(affected->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(affected->Wait().status.message()),
              AllOf(HasSubstr("experts were not back within 10 s"), HasSubstr("shard 1/2")));
  EXPECT_EQ(affected->Wait().completion_tokens, 2);
  harness.experts.AwaitWaits(harness.experts.num_waits() + 2);
  EXPECT_FALSE(later->finished()) << "it has waited four seconds of its ten";
  harness.clock.Advance(absl::Seconds(6));
  EXPECT_EQ(later->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(later->started());
  EXPECT_TRUE(harness.AllFree());

  // Still away: a new one waits. Back: it is served.
  const auto lucky = harness.Submit(request);
  harness.experts.AwaitWaits(harness.experts.num_waits() + 2);
  EXPECT_FALSE(lucky->finished());
  harness.experts.SetReady(true);
  EXPECT_TRUE(lucky->Wait().status.ok());
  EXPECT_EQ(lucky->tokens(), ExpectedTokens(request));
}

TEST(ExpertLossTest, CancelAndDeadlineAreHeardWhileWaiting) {
  LossHarness harness;
  harness.lose_at = 0;
  Engine& engine = harness.Start();
  int64_t handle = 0;
  const auto cancelled = harness.Submit(MakeRequest(MakePrompt(10), 100), &handle);
  harness.experts.AwaitWaits(1);
  Request request = MakeRequest(MakePrompt(10), 100);
  request.deadline = harness.clock.Now() + absl::Seconds(3);
  const auto expired = harness.Submit(request);
  engine.Cancel(handle);
  EXPECT_EQ(cancelled->Wait().reason, FinishReason::kCancelled);
  EXPECT_TRUE(cancelled->Wait().status.ok());
  harness.clock.Advance(absl::Seconds(3));
  EXPECT_EQ(expired->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(harness.AllFree());
}

TEST(ExpertLossTest, DrainDoesNotWaitForExpertsBeyondItsDeadline) {
  LossHarness harness;
  harness.lose_at = 0;
  Engine& engine = harness.Start();
  const auto listener = harness.Submit(MakeRequest(MakePrompt(10), 100));
  harness.experts.AwaitWaits(1);
  engine.Drain(absl::InfinitePast());
  EXPECT_EQ(listener->Wait().status.code(), absl::StatusCode::kUnavailable);
}

TEST(ExpertLossTest, ExpertsThatSeemReadyButKeepFailingAreALossToo) {
  Harness harness;
  std::atomic<int> tries = 0;
  harness.forward.on_forward = [&](const Step&) {
    if (++tries < 5) return absl::UnavailableError("shard 0/1: stream broke");
    if (tries == 5) harness.clock.Advance(absl::Seconds(10));
    return tries < 8 ? absl::UnavailableError("shard 0/1: stream broke") : absl::OkStatus();
  };
  harness.Start();
  const Request request = MakeRequest(MakePrompt(10), 3);
  const auto affected = harness.Submit(request);
  EXPECT_EQ(affected->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(tries, 5);
  const auto next = harness.Submit(request);
  EXPECT_TRUE(next->Wait().status.ok());
  EXPECT_EQ(next->tokens(), ExpectedTokens(request));
}

TEST(ExpertLossTest, NoWaitAtAll) {
  LossHarness harness;
  harness.lose_at = 0;
  harness.options.expert_wait = absl::ZeroDuration();
  harness.Start();
  const auto listener = harness.Submit(MakeRequest(MakePrompt(10), 100));
  EXPECT_EQ(listener->Wait().status.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace banyan::trunk
