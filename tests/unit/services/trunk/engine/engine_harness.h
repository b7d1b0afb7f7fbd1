// An engine over the fakes, and what a request must yield by definition.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/base/check.h"
#include "common/metrics/registry.h"
#include "services/trunk/engine/engine.h"
#include "services/trunk/sampling/sampler.h"
#include "tests/fakes/fake_expert_transport.h"
#include "tests/fakes/fake_forward_pass.h"
#include "tests/fakes/manual_clock.h"
#include "tests/fakes/recording_listener.h"

namespace banyan::trunk {

inline constexpr int32_t kVocab = 61;
inline constexpr int32_t kSampledVocab = 57;

struct Harness {
  explicit Harness(const ForwardPass::Limits& limits = {.max_rows = 512,
                                                        .num_slots = 32,
                                                        .num_pages = 400,
                                                        .max_logits_rows = 7,
                                                        .max_top_logits = 20,
                                                        .vocab_size = kVocab,
                                                        .max_position = 4096})
      : forward(limits) {
    options.max_batch_tokens = limits.max_rows;
    options.max_sequences = limits.num_slots;
    options.sampled_vocab_size = kSampledVocab;
  }
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;

  // Starts the engine; the fakes' hooks and `options` are set before.
  Engine& Start() {
    auto created = Engine::Create(options, &forward, &experts, &metrics, &clock);
    CHECK(created.ok());
    engine = *std::move(created);
    return *engine;
  }

  // Submits; the handle goes to `handle` if wanted. CHECK: accepted.
  std::shared_ptr<RecordingListener> Submit(Request request, int64_t* handle = nullptr) {
    auto listener = std::make_shared<RecordingListener>();
    const auto submitted = engine->Submit(std::move(request), listener);
    CHECK(submitted.ok());
    if (handle != nullptr) *handle = *submitted;
    return listener;
  }

  double Counter(const std::string& name, const MetricLabels& labels = {}) {
    for (const auto& family : metrics.Collect()) {
      if (family.name != name) continue;
      for (const auto& metric : family.metric) {
        MetricLabels found;
        for (const auto& label : metric.label) found[label.name] = label.value;
        if (found == labels) return metric.counter.value;
      }
    }
    CHECK(false);
  }

  // Everything has been given back; call after the last OnFinished.
  bool AllFree() const {
    const Engine::Snapshot snapshot = engine->GetSnapshot();
    return snapshot.free_pages == snapshot.num_pages && snapshot.used_slots == 0;
  }

  ManualClock clock;
  FakeForwardPass forward;
  FakeExpertTransport experts;
  MetricsRegistry metrics;
  Engine::Options options;
  std::unique_ptr<Engine> engine;  // last: ends first
};

inline Request MakeRequest(std::vector<int32_t> prompt_ids, int32_t max_new_tokens,
                           SamplingParams sampling = {.temperature = 0.0f}) {
  Request request;
  request.prompt_ids = std::move(prompt_ids);
  request.max_new_tokens = max_new_tokens;
  request.sampling = std::move(sampling);
  return request;
}

// `size` ids that depend on `salt`.
inline std::vector<int32_t> MakePrompt(int32_t size, uint32_t salt = 0) {
  std::vector<int32_t> ids(static_cast<size_t>(size));
  uint32_t state = salt * 2654435761u + 12345;
  for (int32_t& id : ids) {
    state = state * 1664525u + 1013904223u;
    id = static_cast<int32_t>((state >> 16) % kVocab);
  }
  return ids;
}

// The tokens of a request by definition: one sequence, no engine, no scheduler.
inline std::vector<int32_t> ExpectedTokens(const Request& request, int32_t max_context = 4096) {
  std::vector<int32_t> tokens = request.prompt_ids;
  const auto prompt = static_cast<int32_t>(tokens.size());
  TokenHistory history(request.prompt_ids);
  Sampler sampler(kSampledVocab);
  std::vector<float> logits(kVocab);
  std::vector<int32_t> output;
  while (static_cast<int32_t>(output.size()) < request.max_new_tokens &&
         static_cast<int32_t>(tokens.size()) < max_context) {
    FakeForwardPass::Logits(tokens, prompt, logits);
    const auto chosen =
        sampler.Choose(request.sampling, history, static_cast<int64_t>(tokens.size()), logits);
    CHECK(chosen.ok());
    tokens.push_back(*chosen);
    output.push_back(*chosen);
    history.AddOutput(*chosen);
    for (const int32_t stop : request.stop_token_ids) {
      if (stop == *chosen) return output;
    }
  }
  return output;
}

}  // namespace banyan::trunk
