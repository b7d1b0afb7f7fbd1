// Same request and seed, same tokens: alone, beside 31 others, through preemptions, with one or two
// threads. The real engine over the real decoder on the demo model.
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/metrics/registry.h"
#include "services/trunk/engine/engine.h"
#include "tests/fakes/model_harness.h"
#include "tests/fakes/recording_listener.h"
#include "tests/fakes/sanitized.h"
#include "tests/fakes/source_dir.h"

namespace banyan::test {
namespace {

using trunk::Engine;
using trunk::RecordingListener;
using trunk::Request;

constexpr int32_t kNumRequests = kSanitized ? 8 : 32;
constexpr uint64_t kSeed = 20240917;

// Prompts of 1 to 200 tokens, every kind of sampling.
std::vector<Request> MakeRequests() {
  std::mt19937_64 random(kSeed);
  std::vector<Request> requests;
  for (int32_t i = 0; i < kNumRequests; ++i) {
    Request request;
    request.request_id = "request-" + std::to_string(i);
    const auto length = static_cast<size_t>(1 + random() % 200);
    for (size_t t = 0; t < length; ++t) {
      request.prompt_ids.push_back(static_cast<int32_t>(random() % 1000));
    }
    request.max_new_tokens = static_cast<int32_t>(100 + random() % 150);
    request.sampling.temperature = i % 4 == 0 ? 0.0f : 0.9f;
    request.sampling.top_p = i % 3 == 0 ? 0.8f : 1.0f;
    request.sampling.top_k = i % 5 == 0 ? 20 : 0;
    request.sampling.min_p = i % 7 == 0 ? 0.05f : 0.0f;
    request.sampling.repetition_penalty = i % 6 == 0 ? 1.2f : 1.0f;
    request.sampling.presence_penalty = i % 8 == 0 ? 0.5f : 0.0f;
    request.sampling.seed = random();
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Outcome {
  std::vector<std::vector<int32_t>> tokens;  // of each request
  double preemptions = 0;
};

// `at_once`: all requests submitted together, else one after the other.
Outcome RunAll(const std::vector<Request>& requests, bool at_once, int num_threads,
               int32_t num_pages) {
  ModelHarness model({.directory = SourceDir() + "/deploy/models/demo",
                      .num_threads = num_threads,
                      .num_slots = kNumRequests,
                      .num_pages = num_pages});
  MetricsRegistry metrics;
  const SystemClock clock;
  Engine::Options options;
  options.max_batch_tokens = 256;
  options.max_sequences = kNumRequests;
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Create(options, &model.forward_pass(), &model.transport(), &metrics, &clock);
  EXPECT_TRUE(engine.ok()) << engine.status();
  Outcome run;
  std::vector<std::shared_ptr<RecordingListener>> listeners;
  for (const Request& request : requests) {
    listeners.push_back(std::make_shared<RecordingListener>());
    EXPECT_TRUE((*engine)->Submit(request, listeners.back()).ok());
    if (!at_once) listeners.back()->Wait();
  }
  for (const auto& listener : listeners) {
    EXPECT_TRUE(listener->Wait().status.ok()) << listener->Wait().status;
    run.tokens.push_back(listener->tokens());
  }
  run.preemptions =
      metrics
          .Counter("banyan_trunk_preemptions_total",
                   "Sequences whose state was given up, to be recomputed.", {{"reason", "pages"}})
          .Value();
  return run;
}

class SameTokensTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    requests_ = MakeRequests();
    alone_ = RunAll(requests_, /*at_once=*/false, /*num_threads=*/1, /*num_pages=*/400);
  }
  static inline std::vector<Request> requests_;
  static inline Outcome alone_;
};

TEST_F(SameTokensTest, BesideThirtyOneOthers) {
  const Outcome together = RunAll(requests_, true, 1, 400);
  EXPECT_EQ(together.preemptions, 0);
  EXPECT_EQ(together.tokens, alone_.tokens);
}

TEST_F(SameTokensTest, ThroughPreemptions) {
  // Nine pages hold the longest request (at most 449 tokens, eight pages) and little else. A few
  // requests then wait for each other before they start: more pages let some of them in.
  const Outcome squeezed = RunAll(requests_, true, 1, kSanitized ? 20 : 9);
  EXPECT_GT(squeezed.preemptions, 0);
  EXPECT_EQ(squeezed.tokens, alone_.tokens);
}

TEST_F(SameTokensTest, WithTwoThreads) {
  const Outcome threaded = RunAll(requests_, true, 2, 20);
  EXPECT_GT(threaded.preemptions, 0);
  EXPECT_EQ(threaded.tokens, alone_.tokens);
}

}  // namespace
}  // namespace banyan::test
