// Random workloads: whatever else happens, a request's tokens are those it has alone, every
// listener hears its end once, and nothing is left behind. Seeds are printed.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/unit/services/trunk/engine/engine_harness.h"

namespace banyan::trunk {
namespace {

Request RandomRequest(std::mt19937* random, int32_t max_prompt, int32_t max_new) {
  const auto below = [&](int32_t n) {
    return static_cast<int32_t>((*random)() % static_cast<uint32_t>(n));
  };
  SamplingParams sampling{
      .temperature = below(3) == 0 ? 0.0f : 0.5f + 0.1f * static_cast<float>(below(10)),
      .top_k = below(2) == 0 ? 0 : 1 + below(40),
      .top_p = below(2) == 0 ? 1.0f : 0.9f,
      .min_p = below(4) == 0 ? 0.1f : 0.0f,
      .repetition_penalty = below(3) == 0 ? 1.2f : 1.0f,
      .frequency_penalty = below(4) == 0 ? 0.5f : 0.0f,
      .seed = (*random)()};
  Request request =
      MakeRequest(MakePrompt(1 + below(max_prompt), (*random)()), below(max_new + 1), sampling);
  if (below(3) == 0) request.stop_token_ids = {below(kSampledVocab)};
  request.prompt_logprobs = below(8) == 0;
  request.num_logprobs = below(8) == 0 ? 4 : 0;
  return request;
}

struct Workload {
  int32_t slots = 32;
  int32_t pages = 400;
  int32_t rows = 256;
  int32_t requests = 32;
  int32_t max_prompt = 300;
  int32_t max_new = 40;
  int fail_percent = 0;    // of the steps, with kUnavailable
  int cancel_percent = 0;  // of the requests, at a random token
};

void RunWorkload(const Workload& workload, uint32_t seed, double* preemptions) {
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  Harness harness({.max_rows = workload.rows,
                   .num_slots = workload.slots,
                   .num_pages = workload.pages,
                   .max_logits_rows = 1 + static_cast<int32_t>(random() % 9),
                   .max_top_logits = seed % 3 == 0   ? 0
                                     : seed % 3 == 1 ? 8
                                                     : kSampledVocab,
                   .vocab_size = kVocab,
                   .max_position = 4096});
  harness.options.max_queued_requests = workload.requests;
  std::mt19937 failures(seed + 1);
  harness.forward.on_forward = [&](const Step&) {
    return static_cast<int>(failures() % 100) < workload.fail_percent
               ? absl::UnavailableError("shard 0/1: gone for a step")
               : absl::OkStatus();
  };
  Engine& engine = harness.Start();
  const int32_t context = engine.GetSnapshot().max_context_tokens;
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingListener>> listeners;
  std::vector<bool> cancelled;
  for (int32_t i = 0; i < workload.requests; ++i) {
    requests.push_back(
        RandomRequest(&random, std::min(workload.max_prompt, context), workload.max_new));
    auto listener = std::make_shared<RecordingListener>();
    cancelled.push_back(static_cast<int>(random() % 100) < workload.cancel_percent);
    if (cancelled.back()) {
      auto handle = std::make_shared<std::atomic<int64_t>>(0);
      const size_t at = 1 + random() % 10;
      listener->on_token = [&engine, handle, at](int32_t, size_t count) {
        if (count >= at) engine.Cancel(*handle);
        return false;
      };
      *handle = engine.Submit(requests.back(), listener).value();
      if (random() % 4 == 0) engine.Cancel(*handle);
    } else {
      ASSERT_TRUE(engine.Submit(requests.back(), listener).ok());
    }
    listeners.push_back(std::move(listener));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const FinishInfo& info = listeners[i]->Wait();
    ASSERT_TRUE(info.status.ok()) << i << " " << info.status;
    const std::vector<int32_t> expected = ExpectedTokens(requests[i], context);
    std::vector<int32_t> tokens = listeners[i]->tokens();
    ASSERT_EQ(info.completion_tokens, static_cast<int32_t>(tokens.size()));
    if (info.reason == FinishReason::kCancelled) {
      ASSERT_TRUE(cancelled[i]);
      ASSERT_LE(tokens.size(), expected.size());
      ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin())) << i;
      continue;
    }
    ASSERT_EQ(tokens, expected) << i;
    if (requests[i].prompt_logprobs) {
      ASSERT_EQ(listeners[i]->prompt_logprobs().size(), requests[i].prompt_ids.size() - 1);
    }
    if (requests[i].num_logprobs > 0) {
      ASSERT_EQ(listeners[i]->logprobs().size(), tokens.size());
    }
  }
  engine.Drain(absl::InfiniteFuture());
  ASSERT_TRUE(harness.AllFree());
  *preemptions += harness.Counter("banyan_trunk_preemptions_total", {{"reason", "pages"}});
}

TEST(EnginePropertyTest, SameTokensAloneOrBeside31Others) {
  double preemptions = 0;
  for (uint32_t seed = 100; seed < 120; ++seed) {
    ASSERT_NO_FATAL_FAILURE(RunWorkload({}, seed, &preemptions));
  }
}

TEST(EnginePropertyTest, SameTokensWhenPagesRunOut) {
  double preemptions = 0;
  for (uint32_t seed = 200; seed < 230; ++seed) {
    const auto pages = static_cast<int32_t>(5 + seed % 9);
    ASSERT_NO_FATAL_FAILURE(RunWorkload({.slots = 8,
                                         .pages = pages,
                                         .rows = 71 + static_cast<int32_t>(seed % 90),
                                         .max_prompt = seed % 2 == 0 ? 60 : 250,
                                         .max_new = 250},
                                        seed, &preemptions));
  }
  EXPECT_GT(preemptions, 50) << "the workload must provoke them";
}

TEST(EnginePropertyTest, SameTokensThroughFailingSteps) {
  double preemptions = 0;
  for (uint32_t seed = 300; seed < 310; ++seed) {
    ASSERT_NO_FATAL_FAILURE(RunWorkload({.slots = 8,
                                         .pages = seed % 2 == 0 ? 400 : 9,
                                         .rows = 200,
                                         .requests = 12,
                                         .fail_percent = 8},
                                        seed, &preemptions));
  }
}

TEST(EnginePropertyTest, CancellationsDisturbNobody) {
  double preemptions = 0;
  for (uint32_t seed = 400; seed < 420; ++seed) {
    ASSERT_NO_FATAL_FAILURE(RunWorkload({.slots = 8,
                                         .pages = seed % 2 == 0 ? 400 : 10,
                                         .rows = 130,
                                         .max_new = 80,
                                         .cancel_percent = 50},
                                        seed, &preemptions));
  }
}

TEST(EnginePropertyTest, ManyThreadsSubmitAndCancel) {
  constexpr uint32_t kSeed = 500;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Harness harness({.max_rows = 128,
                   .num_slots = 6,
                   .num_pages = 20,
                   .max_logits_rows = 3,
                   .max_top_logits = 8,
                   .vocab_size = kVocab,
                   .max_position = 4096});
  harness.options.max_queued_requests = 16;
  Engine& engine = harness.Start();
  std::atomic<int> finished = 0;
  std::atomic<int> accepted = 0;
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(kSeed + t);
      for (int i = 0; i < 60; ++i) {
        auto listener = std::make_shared<RecordingListener>();
        listener->on_finished = [&] { ++finished; };
        const Request request = RandomRequest(&random, 200, 20);
        const auto handle = engine.Submit(request, listener);
        if (!handle.ok()) continue;  // the queue is full
        ++accepted;
        if (random() % 3 == 0) engine.Cancel(*handle);
        if (random() % 3 == 0) {
          const FinishInfo& info = listener->Wait();
          if (info.reason != FinishReason::kCancelled) {
            EXPECT_EQ(listener->tokens(), ExpectedTokens(request, 20 * kPageTokens));
          }
        }
        (void)engine.GetSnapshot();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine.Drain(absl::InfiniteFuture());
  EXPECT_EQ(finished, accepted);
  EXPECT_GT(accepted, 0);
  EXPECT_TRUE(harness.AllFree());
  EXPECT_EQ(engine.GetSnapshot().queued, 0);
  EXPECT_EQ(engine.GetSnapshot().running, 0);
}

}  // namespace
}  // namespace banyan::trunk
