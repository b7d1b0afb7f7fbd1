#include "services/trunk/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/unit/services/trunk/engine/engine_harness.h"

namespace banyan::trunk {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

TEST(EngineTest, GeneratesWhatTheDefinitionSays) {
  Harness harness;
  harness.Start();
  for (const int32_t prompt : {1, 2, 63, 64, 65, 128, 700}) {
    const Request request = MakeRequest(MakePrompt(prompt), 20);
    const auto listener = harness.Submit(request);
    const FinishInfo& info = listener->Wait();
    EXPECT_TRUE(info.status.ok()) << info.status;
    EXPECT_EQ(info.reason, FinishReason::kLength);
    EXPECT_EQ(info.prompt_tokens, prompt);
    EXPECT_EQ(info.completion_tokens, 20);
    EXPECT_EQ(info.stop_token_id, -1);
    EXPECT_EQ(listener->tokens(), ExpectedTokens(request)) << "prompt of " << prompt;
    EXPECT_TRUE(harness.AllFree());
  }
}

TEST(EngineTest, SampledAndPenalisedTokensAreTheDefinitionsToo) {
  Harness harness;
  harness.Start();
  SamplingParams sampling{.temperature = 0.9f,
                          .top_k = 30,
                          .top_p = 0.95f,
                          .repetition_penalty = 1.3f,
                          .presence_penalty = 0.5f,
                          .frequency_penalty = 0.25f,
                          .seed = 4711};
  sampling.logit_bias = {{3, 2.0f}, {8, -50.0f}};
  const Request request = MakeRequest(MakePrompt(130), 100, sampling);
  const auto listener = harness.Submit(request);
  listener->Wait();
  EXPECT_EQ(listener->tokens(), ExpectedTokens(request));
  for (const int32_t token : listener->tokens()) {
    EXPECT_LT(token, kSampledVocab);
    EXPECT_NE(token, 8);
  }
}

// A forward pass that sorts and one that does not; top_k below, at and beyond what it sorts.
TEST(EngineTest, TheHighestLogitsAloneGiveTheSameTokens) {
  std::vector<Request> requests;
  for (const int32_t top_k : {0, 1, 2, 19, 20, 21, kSampledVocab - 1, kSampledVocab, 1000}) {
    for (const float temperature : {0.0f, 0.8f}) {
      const SamplingParams sampling{.temperature = temperature,
                                    .top_k = top_k,
                                    .top_p = top_k % 2 == 0 ? 1.0f : 0.9f,
                                    .seed = static_cast<uint64_t>(7 + top_k)};
      requests.push_back(
          MakeRequest(MakePrompt(20, static_cast<uint32_t>(requests.size())), 30, sampling));
    }
  }
  std::vector<std::vector<int32_t>> tokens[2];
  for (const int32_t max_top_logits : {0, 20}) {
    Harness harness({.max_rows = 512,
                     .num_slots = 32,
                     .num_pages = 400,
                     .max_logits_rows = 7,
                     .max_top_logits = max_top_logits,
                     .vocab_size = kVocab,
                     .max_position = 4096});
    harness.Start();
    std::vector<std::shared_ptr<RecordingListener>> listeners;
    for (const Request& request : requests) listeners.push_back(harness.Submit(request));
    for (size_t i = 0; i < requests.size(); ++i) {
      listeners[i]->Wait();
      EXPECT_EQ(listeners[i]->tokens(), ExpectedTokens(requests[i])) << i;
      tokens[max_top_logits > 0 ? 1 : 0].push_back(listeners[i]->tokens());
    }
    harness.engine->Drain(absl::InfiniteFuture());
    if (max_top_logits == 0) {
      EXPECT_EQ(harness.forward.num_top_rows(), 0);
    } else {
      // Greedy always; of the others top_k 1, 2, 19 and 20.
      EXPECT_EQ(harness.forward.num_top_rows(), 30 * (9 + 4));
      EXPECT_EQ(harness.forward.num_full_rows(), 30 * 5);
    }
  }
  EXPECT_EQ(tokens[0], tokens[1]);
}

// With penalties that lower logits as long as the highest of them are enough, then without trying.
TEST(EngineTest, PenaltiesOnTheHighestLogitsGiveTheSameTokens) {
  Harness harness;
  harness.Start();
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 24; ++i) {
    SamplingParams sampling{.temperature = i % 3 == 0 ? 0.0f : 0.8f,
                            .top_k = 1 + static_cast<int32_t>(i % 10),
                            .repetition_penalty = i % 2 == 0 ? 1.1f : 1.0f,
                            .presence_penalty = i % 4 == 1 ? 6.0f : 0.0f,
                            .frequency_penalty = i % 4 == 3 ? 0.2f : 0.0f,
                            .seed = i};
    if (i % 6 == 5) {
      sampling.top_k = 0;
      sampling.min_p = 0.2f;
    }
    if (i % 5 == 0) sampling.logit_bias = {{static_cast<int32_t>(i), -20.0f}};
    requests.push_back(MakeRequest(MakePrompt(1 + static_cast<int32_t>(i), i), 60, sampling));
  }
  std::vector<std::shared_ptr<RecordingListener>> listeners;
  for (const Request& request : requests) listeners.push_back(harness.Submit(request));
  for (size_t i = 0; i < requests.size(); ++i) {
    listeners[i]->Wait();
    EXPECT_EQ(listeners[i]->tokens(), ExpectedTokens(requests[i])) << i;
  }
  harness.engine->Drain(absl::InfiniteFuture());
  EXPECT_GT(harness.forward.num_top_rows(), 24 * 60 / 4) << "tried";
  EXPECT_GT(harness.forward.num_full_rows(), 0) << "not always enough";
  EXPECT_LT(harness.forward.num_top_rows() + harness.forward.num_full_rows(),
            24 * 60 + 24 * (60 / 16 + 1))
      << "one in 17 in vain at the most";
}

TEST(EngineTest, OneProductForAllRowsOfAStep) {
  Harness harness;
  absl::Notification all;
  harness.forward.on_forward = [&](const Step&) {
    all.WaitForNotification();
    return absl::OkStatus();
  };
  harness.Start();
  Request with_logprobs = MakeRequest(MakePrompt(9, 1), 5);
  with_logprobs.num_logprobs = 2;
  const std::vector<Request> requests = {
      MakeRequest(MakePrompt(9), 5), with_logprobs,
      MakeRequest(MakePrompt(9, 2), 5, {.temperature = 0.5f, .top_k = 12, .seed = 5}),
      MakeRequest(MakePrompt(9, 3), 5, {.temperature = 0.5f, .seed = 5})};
  // The first step may have any of them.
  std::vector<std::shared_ptr<RecordingListener>> listeners;
  for (const Request& request : requests) listeners.push_back(harness.Submit(request));
  all.Notify();
  for (size_t i = 0; i < requests.size(); ++i) {
    listeners[i]->Wait();
    EXPECT_EQ(listeners[i]->tokens(), ExpectedTokens(requests[i])) << i;
  }
  harness.engine->Drain(absl::InfiniteFuture());
  EXPECT_EQ(harness.forward.num_full_rows(), 10);
  EXPECT_EQ(harness.forward.num_top_rows(), 10);
  EXPECT_EQ(harness.forward.num_head_runs(), harness.forward.num_steps());
}

TEST(EngineTest, PromptOnly) {
  Harness harness;
  harness.Start();
  Request request = MakeRequest(MakePrompt(100), 0);
  request.prompt_logprobs = true;
  request.num_logprobs = 3;
  const auto listener = harness.Submit(request);
  const FinishInfo& info = listener->Wait();
  EXPECT_TRUE(info.status.ok());
  EXPECT_EQ(info.reason, FinishReason::kLength);
  EXPECT_EQ(info.completion_tokens, 0);
  EXPECT_TRUE(listener->started());
  EXPECT_TRUE(listener->tokens().empty());
  EXPECT_EQ(listener->prompt_logprobs().size(), 99u);
}

TEST(EngineTest, PromptLogprobsOfEveryTokenAfterTheFirst) {
  Harness harness;
  harness.Start();
  for (const int32_t prompt : {1, 2, 64, 65, 300}) {
    Request request = MakeRequest(MakePrompt(prompt), 3);
    request.prompt_logprobs = true;
    request.num_logprobs = 5;
    const auto listener = harness.Submit(request);
    listener->Wait();
    const std::vector<TokenLogprobs> records = listener->prompt_logprobs();
    ASSERT_EQ(records.size(), static_cast<size_t>(prompt - 1));
    std::vector<float> logits(kVocab);
    for (size_t i = 0; i < records.size(); ++i) {
      const std::span<const int32_t> before = std::span(request.prompt_ids).first(i + 1);
      FakeForwardPass::Logits(before, prompt, logits);
      const auto expected = ComputeLogprobs(logits, kSampledVocab, request.prompt_ids[i + 1], 5);
      ASSERT_EQ(records[i].token_id, expected->token_id) << i;
      ASSERT_EQ(records[i].logprob, expected->logprob) << i;
      ASSERT_EQ(records[i].top_ids, expected->top_ids) << i;
      ASSERT_EQ(records[i].top_logprobs, expected->top_logprobs) << i;
    }
    EXPECT_EQ(listener->logprobs().size(), 3u);
  }
  EXPECT_LE(harness.forward.most_logits_rows(), 7) << "rows of logits in memory";
}

TEST(EngineTest, LogprobsAreOfTheModelsOwnDistribution) {
  Harness harness;
  harness.Start();
  SamplingParams sampling{.temperature = 0.5f, .repetition_penalty = 2.0f, .seed = 3};
  sampling.logit_bias = {{5, 10.0f}};
  Request request = MakeRequest(MakePrompt(10), 4, sampling);
  request.num_logprobs = 2;
  const auto listener = harness.Submit(request);
  listener->Wait();
  const std::vector<TokenLogprobs> records = listener->logprobs();
  const std::vector<int32_t> tokens = listener->tokens();
  ASSERT_EQ(records.size(), 4u);
  std::vector<int32_t> so_far = request.prompt_ids;
  std::vector<float> logits(kVocab);
  for (size_t i = 0; i < records.size(); ++i) {
    FakeForwardPass::Logits(so_far, 10, logits);
    const auto expected = ComputeLogprobs(logits, kSampledVocab, tokens[i], 2);
    EXPECT_EQ(records[i].logprob, expected->logprob);
    EXPECT_EQ(records[i].top_ids, expected->top_ids);
    so_far.push_back(tokens[i]);
  }
  // The chosen token alone.
  request.num_logprobs = 0;
  request.logprobs = true;
  const auto alone = harness.Submit(request);
  alone->Wait();
  EXPECT_EQ(alone->tokens(), tokens);
  ASSERT_EQ(alone->logprobs().size(), 4u);
  EXPECT_TRUE(alone->logprobs()[0].top_ids.empty());
  EXPECT_EQ(alone->logprobs()[0].logprob, records[0].logprob);
  // And none.
  request.logprobs = false;
  const auto none = harness.Submit(request);
  none->Wait();
  EXPECT_TRUE(none->logprobs().empty());
}

TEST(EngineTest, StopTokenIsPublishedAndCounted) {
  Harness harness;
  harness.Start();
  Request request = MakeRequest(MakePrompt(10), 50);
  const std::vector<int32_t> expected = ExpectedTokens(request);
  request.stop_token_ids = {-1, 999, expected[7]};
  const size_t first = static_cast<size_t>(
      std::find(expected.begin(), expected.end(), expected[7]) - expected.begin());
  const auto listener = harness.Submit(request);
  const FinishInfo& info = listener->Wait();
  EXPECT_EQ(info.reason, FinishReason::kStop);
  EXPECT_EQ(info.stop_token_id, expected[7]);
  EXPECT_EQ(info.completion_tokens, static_cast<int32_t>(first) + 1);
  EXPECT_TRUE(listener->ended_by_stop_token());
  EXPECT_EQ(listener->tokens().back(), expected[7]);
}

TEST(EngineTest, ListenerFindsAStopString) {
  Harness harness;
  harness.Start();
  auto listener = std::make_shared<RecordingListener>();
  listener->on_token = [](int32_t, size_t count) { return count == 5; };
  ASSERT_TRUE(harness.engine->Submit(MakeRequest(MakePrompt(10), 50), listener).ok());
  const FinishInfo& info = listener->Wait();
  EXPECT_EQ(info.reason, FinishReason::kStop);
  EXPECT_EQ(info.stop_token_id, -1);
  EXPECT_EQ(info.completion_tokens, 5);
}

TEST(EngineTest, TheContextEndsTheOutput) {
  Harness harness;
  harness.options.max_context_tokens = 100;
  harness.Start();
  const Request request = MakeRequest(MakePrompt(90), std::numeric_limits<int32_t>::max());
  const auto listener = harness.Submit(request);
  EXPECT_EQ(listener->Wait().reason, FinishReason::kLength);
  EXPECT_EQ(listener->tokens(), ExpectedTokens(request, 100));
  EXPECT_EQ(listener->tokens().size(), 10u);
  const auto full = harness.Submit(MakeRequest(MakePrompt(100), 5));
  EXPECT_EQ(full->Wait().completion_tokens, 0) << "the prompt fills the context";
  EXPECT_TRUE(full->started());
}

TEST(EngineTest, BadRequestsAreRefusedWithTheReason) {
  Harness harness;
  harness.options.max_context_tokens = 100;
  Engine& engine = harness.Start();
  const auto refused = [&](Request request) {
    auto listener = std::make_shared<RecordingListener>();
    const auto submitted = engine.Submit(std::move(request), listener);
    EXPECT_EQ(submitted.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(listener->finished());
    EXPECT_EQ(listener.use_count(), 1);
    return MessageOf(submitted.status());
  };
  EXPECT_EQ(refused(MakeRequest({}, 5)), "empty prompt: expected a token or more");
  EXPECT_EQ(refused(MakeRequest(MakePrompt(101), 5)),
            "prompt of 101 tokens: the context has room for 100");
  EXPECT_EQ(refused(MakeRequest({1, 2, 61}, 5)), "prompt token 2 has id 61: expected 0 to 60");
  EXPECT_EQ(refused(MakeRequest({-4}, 5)), "prompt token 0 has id -4: expected 0 to 60");
  EXPECT_EQ(refused(MakeRequest({1}, -1)), "max_new_tokens -1: expected 0 or more");
  Request request = MakeRequest({1}, 1);
  request.num_logprobs = 21;
  EXPECT_EQ(refused(request), "num_logprobs 21: expected 0 to 20");
  EXPECT_EQ(refused(MakeRequest({1}, 1, {.temperature = -0.5f})),
            "temperature -0.5: expected a number from 0 to 1000");
  EXPECT_EQ(harness.Counter("banyan_trunk_requests_total", {{"outcome", "refused_invalid"}}), 7);
}

TEST(EngineTest, OptionsAreCheckedAgainstTheModel) {
  const auto message = [](const Engine::Options& options) {
    Harness harness;
    const auto created = Engine::Create(options, &harness.forward, &harness.experts,
                                        &harness.metrics, &harness.clock);
    EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument);
    return MessageOf(created.status());
  };
  EXPECT_EQ(message({.max_sequences = 33}),
            "max_sequences 33: expected 1 to 32, the recurrent-state slots");
  EXPECT_THAT(message({.max_batch_tokens = 94}),
              AllOf(HasSubstr("max_batch_tokens 94: expected 95"), HasSubstr("to 512")));
  EXPECT_THAT(message({.max_batch_tokens = 513}), HasSubstr("max_batch_tokens 513"));
  EXPECT_EQ(message({.max_queued_requests = 0}), "max_queued_requests 0: expected 1 or more");
  EXPECT_EQ(message({.max_context_tokens = 4097}),
            "max_context_tokens 4097: expected 0 to 4096, the model's limit");
  EXPECT_EQ(message({.sampled_vocab_size = 62}),
            "sampled_vocab_size 62: expected 0 to 61, the model's vocabulary");
  EXPECT_THAT(message({.expert_wait = -absl::Seconds(1)}), HasSubstr("expert_wait -1s"));
}

TEST(EngineTest, FewPagesLimitTheContext) {
  Harness harness({.max_rows = 128,
                   .num_slots = 2,
                   .num_pages = 3,
                   .max_logits_rows = 4,
                   .max_top_logits = 0,
                   .vocab_size = kVocab,
                   .max_position = 4096});
  Engine& engine = harness.Start();
  EXPECT_EQ(engine.GetSnapshot().max_context_tokens, 192);
  EXPECT_EQ(engine.Submit(MakeRequest(MakePrompt(193), 1), std::make_shared<RecordingListener>())
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  const Request request = MakeRequest(MakePrompt(150), 1000);
  const auto listener = harness.Submit(request);
  listener->Wait();
  EXPECT_EQ(listener->tokens(), ExpectedTokens(request, 192));
}

TEST(EngineTest, CancelFreesEverythingWithinOneStep) {
  Harness harness;
  absl::Notification in_step;
  absl::Notification cancelled;
  int64_t steps_after = 0;
  harness.forward.on_forward = [&](const Step& step) {
    if (cancelled.HasBeenNotified()) ++steps_after;
    if (step.step_id == 3) {
      in_step.Notify();
      cancelled.WaitForNotification();
    }
    return absl::OkStatus();
  };
  Engine& engine = harness.Start();
  int64_t handle = 0;
  const auto listener = harness.Submit(MakeRequest(MakePrompt(1000), 1000), &handle);
  in_step.WaitForNotification();
  engine.Cancel(handle);
  engine.Cancel(handle);
  engine.Cancel(999);  // unknown
  cancelled.Notify();
  const FinishInfo& info = listener->Wait();
  EXPECT_TRUE(info.status.ok());
  EXPECT_EQ(info.reason, FinishReason::kCancelled);
  EXPECT_EQ(steps_after, 0) << "the step under way is the last";
  EXPECT_TRUE(harness.AllFree());
  engine.Cancel(handle);  // over already
  EXPECT_EQ(harness.Counter("banyan_trunk_requests_total", {{"outcome", "cancelled"}}), 1);
}

TEST(EngineTest, CancelInTheQueue) {
  Harness harness;
  harness.options.max_sequences = 1;
  absl::Notification release;
  harness.forward.on_forward = [&](const Step&) {
    release.WaitForNotification();
    return absl::OkStatus();
  };
  Engine& engine = harness.Start();
  const auto first = harness.Submit(MakeRequest(MakePrompt(5), 3));
  int64_t handle = 0;
  const auto second = harness.Submit(MakeRequest(MakePrompt(5), 3), &handle);
  engine.Cancel(handle);
  release.Notify();
  EXPECT_EQ(second->Wait().reason, FinishReason::kCancelled);
  EXPECT_FALSE(second->started());
  EXPECT_EQ(first->Wait().reason, FinishReason::kLength);
}

TEST(EngineTest, ListenersMayCallTheEngine) {
  Harness harness;
  Engine& engine = harness.Start();
  auto chained = std::make_shared<RecordingListener>();
  auto listener = std::make_shared<RecordingListener>();
  int64_t handle = 0;
  absl::Notification submitted;
  listener->on_token = [&](int32_t, size_t count) {
    submitted.WaitForNotification();
    if (count == 2) engine.Cancel(handle);
    EXPECT_EQ(engine.GetSnapshot().running, 1);
    return false;
  };
  listener->on_finished = [&] {
    EXPECT_TRUE(engine.Submit(MakeRequest(MakePrompt(3), 2), chained).ok());
  };
  handle = engine.Submit(MakeRequest(MakePrompt(5), 1000), listener).value();
  submitted.Notify();
  EXPECT_EQ(listener->Wait().completion_tokens, 2);
  EXPECT_EQ(chained->Wait().completion_tokens, 2);
}

TEST(EngineTest, DeadlinesEndRequestsWhereverTheyAre) {
  Harness harness;
  harness.options.max_sequences = 1;
  harness.forward.on_forward = [&](const Step&) {
    harness.clock.Advance(absl::Seconds(1));
    return absl::OkStatus();
  };
  absl::Notification both;
  auto running = std::make_shared<RecordingListener>();
  auto queued = std::make_shared<RecordingListener>();
  running->on_token = [&](int32_t, size_t) {
    both.WaitForNotification();
    return false;
  };
  Engine& engine = harness.Start();
  Request request = MakeRequest(MakePrompt(5), 1000);
  request.deadline = harness.clock.Now() + absl::Milliseconds(5500);
  ASSERT_TRUE(engine.Submit(request, running).ok());
  request.deadline = harness.clock.Now() + absl::Milliseconds(3500);
  ASSERT_TRUE(engine.Submit(request, queued).ok());
  both.Notify();
  const FinishInfo& info = running->Wait();
  EXPECT_EQ(info.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(info.reason, FinishReason::kCancelled);
  EXPECT_EQ(info.completion_tokens, 6);
  EXPECT_EQ(MessageOf(info.status), "deadline passed while running, after 6 generated tokens");
  EXPECT_EQ(queued->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(queued->started());
  EXPECT_EQ(MessageOf(queued->Wait().status),
            "deadline passed in the queue, after 0 generated tokens");
  EXPECT_TRUE(harness.AllFree());
  // Already over when it comes.
  request.deadline = harness.clock.Now() - absl::Seconds(1);
  const auto late = harness.Submit(request);
  EXPECT_EQ(late->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(EngineTest, TimingsComeFromTheClock) {
  Harness harness;
  harness.options.max_sequences = 1;
  absl::Notification both;
  harness.forward.on_forward = [&](const Step&) {
    both.WaitForNotification();
    harness.clock.Advance(absl::Seconds(1));
    return absl::OkStatus();
  };
  harness.Start();
  const auto first = harness.Submit(MakeRequest(MakePrompt(600), 4));  // two steps of prompt
  const auto second = harness.Submit(MakeRequest(MakePrompt(5), 1));
  both.Notify();
  EXPECT_EQ(first->Wait().timings.queue, absl::ZeroDuration());
  EXPECT_EQ(first->Wait().timings.prefill, absl::Seconds(2));
  EXPECT_EQ(first->Wait().timings.decode, absl::Seconds(3));
  EXPECT_EQ(second->Wait().timings.queue, absl::Seconds(5));
  EXPECT_EQ(second->Wait().timings.prefill, absl::Seconds(1));
  EXPECT_EQ(second->Wait().timings.decode, absl::ZeroDuration());
}

TEST(EngineTest, TenThousandRequestsAgainstAQueueOf64) {
  Harness harness;
  absl::Notification in_step;
  absl::Notification release;
  harness.forward.on_forward = [&](const Step& step) {
    if (step.step_id == 0) in_step.Notify();
    release.WaitForNotification();
    return absl::OkStatus();
  };
  harness.options.max_sequences = 2;
  Engine& engine = harness.Start();
  const auto first = harness.Submit(MakeRequest(MakePrompt(5), 2));
  in_step.WaitForNotification();  // the first has left the queue: exactly 64 can wait
  std::vector<std::shared_ptr<RecordingListener>> accepted;
  std::vector<std::weak_ptr<RecordingListener>> refused;
  std::string message;
  for (int i = 0; i < 10000; ++i) {
    auto listener = std::make_shared<RecordingListener>();
    const auto submitted = engine.Submit(MakeRequest(MakePrompt(2000), 2), listener);
    if (submitted.ok()) {
      accepted.push_back(std::move(listener));
      continue;
    }
    ASSERT_EQ(submitted.status().code(), absl::StatusCode::kResourceExhausted);
    message = MessageOf(submitted.status());
    refused.push_back(listener);
  }
  EXPECT_EQ(accepted.size(), 64u);
  EXPECT_EQ(engine.GetSnapshot().queued, 64);
  for (const auto& listener : refused) {
    ASSERT_TRUE(listener.expired()) << "a refused request leaves nothing behind";
  }
  EXPECT_THAT(message, AllOf(HasSubstr("queue is full: 64 requests wait (limit 64)"),
                             HasSubstr("retry in about")));
  release.Notify();
  for (const auto& listener : accepted) {
    EXPECT_EQ(listener->Wait().reason, FinishReason::kLength);
  }
  EXPECT_EQ(harness.Counter("banyan_trunk_requests_total", {{"outcome", "refused_queue_full"}}),
            10000 - 64);
  EXPECT_EQ(harness.Counter("banyan_trunk_requests_total", {{"outcome", "length"}}), 65);
  EXPECT_TRUE(harness.AllFree());
}

TEST(EngineTest, NonFiniteLogitsFailTheirRequestAlone) {
  Harness harness;
  const std::vector<int32_t> poisoned = {13, 13, 13};
  harness.forward.on_logits = [&](std::span<const int32_t> tokens, std::span<float> logits) {
    if (tokens.size() == 5 && std::equal(poisoned.begin(), poisoned.end(), tokens.begin())) {
      logits[9] = std::numeric_limits<float>::quiet_NaN();
    }
    return absl::OkStatus();
  };
  harness.Start();
  const auto bad = harness.Submit(MakeRequest(poisoned, 10));
  const Request request = MakeRequest(MakePrompt(30), 10);
  const auto good = harness.Submit(request);
  EXPECT_EQ(bad->Wait().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(bad->Wait().completion_tokens, 2);
  EXPECT_THAT(MessageOf(bad->Wait().status), HasSubstr("token id 9 for position 5 is nan"));
  good->Wait();
  EXPECT_EQ(good->tokens(), ExpectedTokens(request));
  // In the log-probabilities of a prompt.
  Request prompt = MakeRequest({13, 13, 13, 4, 5, 6}, 10);
  prompt.prompt_logprobs = true;
  const auto failed = harness.Submit(prompt);
  EXPECT_EQ(failed->Wait().status.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(failed->started());
  EXPECT_TRUE(harness.AllFree());
}

TEST(EngineTest, FailedLogitsFailTheirRequests) {
  Harness harness;
  bool fail = true;
  harness.forward.on_logits = [&](std::span<const int32_t>, std::span<float>) {
    return std::exchange(fail, false) ? absl::ResourceExhaustedError("out of scratch")
                                      : absl::OkStatus();
  };
  harness.Start();
  const auto bad = harness.Submit(MakeRequest(MakePrompt(3), 10));
  EXPECT_EQ(bad->Wait().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(MessageOf(bad->Wait().status), "logits for position 3: out of scratch");
  EXPECT_TRUE(harness.Submit(MakeRequest(MakePrompt(3), 10))->Wait().status.ok());
}

TEST(EngineTest, AFailedForwardPassFailsTheRequestsOfTheStep) {
  Harness harness;
  harness.forward.on_forward = [&](const Step& step) {
    return step.step_id == 1 ? absl::DataLossError("layer 3: weights unreadable")
                             : absl::OkStatus();
  };
  harness.Start();
  const auto bad = harness.Submit(MakeRequest(MakePrompt(3), 10));
  EXPECT_EQ(bad->Wait().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(MessageOf(bad->Wait().status), "forward pass failed: layer 3: weights unreadable");
  EXPECT_TRUE(harness.AllFree());
  const Request request = MakeRequest(MakePrompt(3), 10);
  const auto good = harness.Submit(request);
  good->Wait();
  EXPECT_EQ(good->tokens(), ExpectedTokens(request));
  EXPECT_EQ(harness.Counter("banyan_trunk_failed_steps_total"), 1);
}

// Whoever runs the engine hears of a lost device before any request does.
TEST(EngineTest, ALostDeviceEndsEverything) {
  for (const bool in_logits : {false, true}) {
    Harness harness;
    const absl::Status why = absl::InternalError("GPU 0: an illegal memory access");
    if (in_logits) {
      harness.forward.on_logits = [&](std::span<const int32_t> tokens, std::span<float>) {
        if (tokens.size() < 6) return absl::OkStatus();
        harness.forward.fault = why;
        return why;
      };
    } else {
      harness.forward.on_forward = [&](const Step& step) {
        if (step.step_id < 3) return absl::OkStatus();
        harness.forward.fault = why;
        return why;
      };
    }
    harness.options.max_sequences = 2;
    std::vector<absl::Status> told;
    std::vector<std::shared_ptr<RecordingListener>> listeners;
    absl::Notification all_queued;
    harness.options.on_fault = [&](const absl::Status& status) {
      told.push_back(status);
      all_queued.WaitForNotification();
      for (const auto& listener : listeners) EXPECT_FALSE(listener->finished());
    };
    harness.Start();
    for (int i = 0; i < 5; ++i) {  // two of them run
      listeners.push_back(harness.Submit(MakeRequest(MakePrompt(3), 10)));
    }
    all_queued.Notify();
    for (const auto& listener : listeners) {
      EXPECT_EQ(listener->Wait().status.code(), absl::StatusCode::kInternal);
      EXPECT_EQ(MessageOf(listener->Wait().status),
                "the device is lost: GPU 0: an illegal memory access");
    }
    EXPECT_EQ(told.size(), 1u);
    EXPECT_TRUE(harness.AllFree());
    const auto later = harness.engine->Submit(MakeRequest(MakePrompt(3), 10),
                                              std::make_shared<RecordingListener>());
    EXPECT_EQ(later.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(MessageOf(later.status()),
              "the server is ending: the device is lost: GPU 0: an illegal memory access");
    harness.engine->Drain(absl::InfiniteFuture());
  }
}

TEST(EngineTest, DrainLetsRequestsEndAndTakesNoNewOnes) {
  Harness harness;
  Engine& engine = harness.Start();
  const Request request = MakeRequest(MakePrompt(100), 50);
  const auto listener = harness.Submit(request);
  engine.Drain(absl::InfiniteFuture());
  EXPECT_TRUE(listener->finished());
  EXPECT_EQ(listener->tokens(), ExpectedTokens(request));
  const auto refused = engine.Submit(request, std::make_shared<RecordingListener>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr("shutting down"));
  engine.Drain(absl::InfiniteFuture());
  engine.Drain(absl::InfinitePast());
}

TEST(EngineTest, DrainEndsTheRestAtItsDeadline) {
  Harness harness;
  harness.options.max_sequences = 1;
  Engine& engine = harness.Start();
  const auto running = harness.Submit(MakeRequest(MakePrompt(10), 4000));
  const auto queued = harness.Submit(MakeRequest(MakePrompt(10), 4000));
  running->AwaitTokens(1);
  engine.Drain(absl::InfinitePast());
  for (const auto& listener : {running, queued}) {
    ASSERT_TRUE(listener->finished());
    EXPECT_EQ(listener->Wait().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(listener->Wait().reason, FinishReason::kCancelled);
    EXPECT_EQ(listener.use_count(), 1 + 1) << "released by the engine; the loop holds a copy";
  }
}

TEST(EngineTest, TheDestructorEndsEverything) {
  std::shared_ptr<RecordingListener> listener;
  {
    Harness harness;
    harness.Start();
    listener = harness.Submit(MakeRequest(MakePrompt(10), 4000));
    listener->AwaitTokens(1);
  }
  EXPECT_TRUE(listener->finished());
  EXPECT_EQ(listener.use_count(), 1);
}

}  // namespace
}  // namespace banyan::trunk
