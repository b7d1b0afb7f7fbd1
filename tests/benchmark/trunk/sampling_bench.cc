// Microseconds per token of sampling and log-probabilities at Qwen3's vocabulary. The rows look
// like a language model's: most logits in a normal bulk, a few dozen well above it.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <span>
#include <vector>

#include "services/trunk/sampling/logprobs.h"
#include "services/trunk/sampling/sampler.h"

namespace banyan::trunk {
namespace {

constexpr int32_t kVocabSize = 151936;
constexpr int32_t kSampled = 151669;

std::vector<float> ModelLikeRow(bool flat) {
  std::mt19937 random(1);
  std::normal_distribution<float> bulk(0.0f, flat ? 0.05f : 2.0f);
  std::vector<float> row(kVocabSize);
  for (float& x : row) x = bulk(random);
  for (int i = 0; i < 40 && !flat; ++i)
    row[random() % kSampled] += 6.0f + static_cast<float>(i % 7);
  return row;
}

void Choose(benchmark::State& state, const SamplingParams& params, bool flat) {
  const std::vector<float> row = ModelLikeRow(flat);
  std::vector<float> logits = row;
  Sampler sampler(kSampled);
  std::vector<int32_t> ids(1000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 97);
  const TokenHistory history(ids);
  int64_t position = 0;
  for (auto _ : state) {
    if (TokenHistory::NeededBy(params)) std::copy(row.begin(), row.end(), logits.begin());
    benchmark::DoNotOptimize(sampler.Choose(params, history, position++, logits));
  }
}

// What is left where the highest logits come sorted.
void ChooseFromTop(benchmark::State& state, const SamplingParams& params) {
  Sampler sampler(kSampled);
  std::vector<ScoredId> top;
  const std::vector<float> row = ModelLikeRow(false);
  SelectTop(std::span(row).first(kSampled), sampler.TopNeeded(params, 64), &top);
  std::vector<int32_t> ids(1000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 97);
  const TokenHistory history(ids);
  int64_t position = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(sampler.ChooseFromTop(params, history, position++, top));
  }
}

// On the CPU: the operation TopLogits, one row in one thread.
void HighestLogits(benchmark::State& state) {
  const std::vector<float> row = ModelLikeRow(false);
  std::vector<ScoredId> top;
  for (auto _ : state) {
    benchmark::DoNotOptimize(WithinBound(row));
    SelectTop(std::span(row).first(kSampled), static_cast<int32_t>(state.range(0)), &top);
  }
  state.SetBytesProcessed(state.iterations() * int64_t{kSampled} * 4);
}

void Logprobs(benchmark::State& state) {
  const std::vector<float> row = ModelLikeRow(false);
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        ComputeLogprobs(row, kSampled, 17, static_cast<int32_t>(state.range(0))));
  }
}

BENCHMARK_CAPTURE(Choose, greedy, SamplingParams{.temperature = 0.0f}, false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Choose, default_t0_7_k20_p0_8,
                  SamplingParams{.temperature = 0.7f, .top_k = 20, .top_p = 0.8f}, false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Choose, default_with_penalties_of_1000_ids,
                  SamplingParams{.temperature = 0.7f,
                                 .top_k = 20,
                                 .top_p = 0.8f,
                                 .repetition_penalty = 1.1f,
                                 .presence_penalty = 1.0f},
                  false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Choose, top_p_0_95, SamplingParams{.temperature = 1.0f, .top_p = 0.95f}, false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Choose, top_p_0_95_flat_row, SamplingParams{.temperature = 1.0f, .top_p = 0.95f},
                  true)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Choose, min_p_0_05, SamplingParams{.temperature = 1.0f, .min_p = 0.05f}, false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Choose, plain_softmax, SamplingParams{.temperature = 1.0f}, false)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(ChooseFromTop, greedy, SamplingParams{.temperature = 0.0f})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(ChooseFromTop, default_t0_7_k20_p0_8,
                  SamplingParams{.temperature = 0.7f, .top_k = 20, .top_p = 0.8f})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(ChooseFromTop, default_with_penalties_of_1000_ids,
                  SamplingParams{.temperature = 0.7f,
                                 .top_k = 20,
                                 .top_p = 0.8f,
                                 .repetition_penalty = 1.1f,
                                 .presence_penalty = 1.0f})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(HighestLogits)->Arg(1)->Arg(20)->Arg(64)->Unit(benchmark::kMicrosecond);
BENCHMARK(Logprobs)->Arg(0)->Arg(20)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace banyan::trunk
