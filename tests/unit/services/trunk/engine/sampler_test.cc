#include "services/trunk/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "services/trunk/sampling/philox.h"

namespace banyan::trunk {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomRow(size_t size, std::mt19937* random, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> row(size);
  for (float& x : row) x = normal(*random);
  return row;
}

int32_t Choose(const SamplingParams& params, std::vector<float> logits, int64_t position = 5,
               const TokenHistory& history = {}, int32_t sampled = 0) {
  Sampler sampler(sampled > 0 ? sampled : static_cast<int32_t>(logits.size()));
  const auto chosen = sampler.Choose(params, history, position, logits);
  EXPECT_TRUE(chosen.ok()) << chosen.status();
  return chosen.value_or(-1);
}

// The definition, in f64 with full sorts: the probability of every id after all filters.
std::map<int32_t, double> Oracle(const SamplingParams& params, const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  if (params.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(params.top_k)));
  std::vector<double> weights;
  double total = 0;
  for (const int32_t id : ids) {
    weights.push_back(std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) -
                                static_cast<double>(logits[static_cast<size_t>(ids[0])])) /
                               static_cast<double>(params.temperature)));
    total += weights.back();
  }
  std::map<int32_t, double> kept;
  double before = 0;
  double mass = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool inside = i == 0 || before < static_cast<double>(params.top_p) * total;
    if (inside && weights[i] >= static_cast<double>(params.min_p)) {
      kept[ids[i]] = weights[i];
      mass += weights[i];
    }
    before += weights[i];
  }
  for (auto& [id, weight] : kept) weight /= mass;
  return kept;
}

TEST(SamplerTest, GreedyTakesTheLowestOfEquals) {
  SamplingParams params{.temperature = 0.0f};
  EXPECT_EQ(Choose(params, {1, 3, 2, 3, 3}), 1);
  EXPECT_EQ(Choose(params, {-5, -5}), 0);
  EXPECT_EQ(Choose(params, {7}), 0);
  params.temperature = 1e-7f;
  EXPECT_EQ(Choose(params, {1, 3, 2, 3, 3}), 1);
  params = {.temperature = 2.0f, .top_k = 1};
  EXPECT_EQ(Choose(params, {1, 3, 2, 3, 3}), 1);
  params = {.temperature = 2.0f, .top_p = 0.0f};
  EXPECT_EQ(Choose(params, {1, 3, 2, 3, 3}), 1);
  params = {.temperature = 2.0f, .min_p = 1.0f};
  EXPECT_EQ(Choose(params, {1, 3, 2, 2, 2}), 1);
}

TEST(SamplerTest, IdsBeyondTheTokenizerAreNeverSampled) {
  std::vector<float> logits = {0, 0, 0, 50, 60};
  for (const float temperature : {0.0f, 1.0f, 100.0f}) {
    for (const int32_t top_k : {0, 2, 4, 5, 100}) {
      for (int64_t position = 0; position < 50; ++position) {
        SamplingParams params{.temperature = temperature, .top_k = top_k};
        params.logit_bias = {{4, 100.0f}};
        EXPECT_LT(Choose(params, logits, position, {}, 3), 3);
      }
    }
  }
}

TEST(SamplerTest, BiasAndPenaltiesInOrder) {
  SamplingParams params{.temperature = 0.0f};
  params.logit_bias = {{2, 5.0f}, {0, -1.0f}};
  EXPECT_EQ(Choose(params, {3, 2, 0, 1}), 2);

  // Repetition: positive logits are divided, negative ones multiplied; prompt and output count.
  const std::vector<int32_t> prompt = {0};
  TokenHistory history(prompt);
  params = {.temperature = 0.0f, .repetition_penalty = 2.0f};
  EXPECT_EQ(Choose(params, {3.9f, 2.0f, 0}, 5, history), 1);
  EXPECT_EQ(Choose(params, {4.1f, 2.0f, 0}, 5, history), 0);
  EXPECT_EQ(Choose(params, {-1.1f, -2.0f, -9}, 5, history), 1);
  EXPECT_EQ(Choose(params, {-0.9f, -2.0f, -9}, 5, history), 0);

  // Presence and frequency: the output alone.
  params = {.temperature = 0.0f, .presence_penalty = 1.0f};
  EXPECT_EQ(Choose(params, {3, 2.5f}, 5, history), 0);
  history.AddOutput(0);
  EXPECT_EQ(Choose(params, {3, 2.5f}, 5, history), 1);
  EXPECT_EQ(Choose(params, {3, 1.9f}, 5, history), 0);
  history.AddOutput(0);
  EXPECT_EQ(Choose(params, {3, 1.9f}, 5, history), 0) << "presence counts once";
  params = {.temperature = 0.0f, .frequency_penalty = 1.0f};
  EXPECT_EQ(Choose(params, {3, 1.1f}, 5, history), 1) << "frequency counts twice";
  EXPECT_EQ(Choose(params, {3, 0.9f}, 5, history), 0);

  // Bias first: it is part of what the repetition penalty scales.
  params = {.temperature = 0.0f, .repetition_penalty = 2.0f};
  params.logit_bias = {{0, 4.0f}};
  EXPECT_EQ(Choose(params, {-1.0f, 1.4f}, 5, history), 0) << "(-1 + 4) / 2";
  EXPECT_EQ(Choose(params, {-1.0f, 1.6f}, 5, history), 1);
}

TEST(SamplerTest, PenalisedIdsOutsideTheRowAreIgnored) {
  const std::vector<int32_t> prompt = {1, 9, 100};
  TokenHistory history(prompt);
  EXPECT_EQ(Choose({.temperature = 0.0f, .repetition_penalty = 3.0f}, {1, 2, 0, 9}, 3, history, 3),
            0);
}

TEST(SamplerTest, KeepsExactlyTheIdsOfTheDefinition) {
  constexpr uint32_t kSeed = 77;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  const float kTopP[] = {0.0f, 0.1f, 0.5f, 0.8f, 0.95f, 0.999f, 1.0f};
  const float kMinP[] = {0.0f, 0.0f, 0.05f, 0.5f};
  const int32_t kTopK[] = {0, 0, 1, 3, 20, 200, 5000};
  for (int trial = 0; trial < 400; ++trial) {
    const size_t size = 1 + random() % 300;
    std::vector<float> logits = RandomRow(size, &random, trial % 2 == 0 ? 3.0f : 0.2f);
    if (trial % 5 == 0) {
      for (float& x : logits) x = std::round(x);  // many ties
    }
    SamplingParams params{.temperature = 0.3f + static_cast<float>(random() % 20) / 10.0f,
                          .top_k = kTopK[random() % 7],
                          .top_p = kTopP[random() % 7],
                          .min_p = kMinP[random() % 4],
                          .seed = random()};
    const std::map<int32_t, double> expected = Oracle(params, logits);
    std::map<int32_t, int> seen;
    for (int64_t position = 0; position < 40; ++position) {
      const int32_t id = Choose(params, logits, position);
      ASSERT_EQ(expected.count(id), 1u)
          << "trial " << trial << " id " << id << " top_k " << params.top_k << " top_p "
          << params.top_p << " min_p " << params.min_p;
      ++seen[id];
    }
    if (expected.size() == 1) {
      ASSERT_EQ(seen.size(), 1u);
    }
  }
}

TEST(SamplerTest, SaysHowMuchOfARowItNeeds) {
  const Sampler sampler(100);
  const auto needed = [&](const SamplingParams& params) { return sampler.TopNeeded(params, 64); };
  EXPECT_EQ(needed({.temperature = 0.0f}), 1);
  EXPECT_EQ(needed({.temperature = 0.0f, .top_k = 80}), 1);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 1}), 1);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 20, .top_p = 0.5f, .min_p = 0.1f}), 20);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 64}), 64);
  for (const int32_t all : {0, 65, 99, 100, 5000}) {
    EXPECT_EQ(needed({.temperature = 1.0f, .top_k = all}), 0) << all;
  }
  EXPECT_EQ(sampler.TopNeeded({.temperature = 0.0f}, 0), 0);
  EXPECT_EQ(Sampler(1).TopNeeded({.temperature = 0.0f}, 64), 1);
  EXPECT_EQ(Sampler(20).TopNeeded({.temperature = 1.0f, .top_k = 20}, 64), 0);
  // Min-p alone cuts the row by itself; with top-p it does so too late.
  EXPECT_EQ(needed({.temperature = 1.0f, .min_p = 0.1f}), 64);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 100, .min_p = 0.1f}), 64);
  EXPECT_EQ(needed({.temperature = 1.0f, .min_p = 0.1f, .presence_penalty = 1.0f}), 64);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_p = 0.9f, .min_p = 0.1f}), 0);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_p = 0.9f}), 0);
  // What lowers logits takes more of them, what raises some takes all.
  EXPECT_EQ(needed({.temperature = 0.0f, .repetition_penalty = 1.1f}), 64);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 32, .presence_penalty = 1.0f}), 64);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 33, .presence_penalty = 1.0f}), 0);
  EXPECT_EQ(needed({.temperature = 1.0f, .top_k = 0, .presence_penalty = 1.0f}), 0);
  EXPECT_EQ(needed({.temperature = 0.0f, .frequency_penalty = 1.0f}), 64);
  EXPECT_EQ(needed({.temperature = 0.0f, .logit_bias = {{3, -1.0f}}}), 64);
  EXPECT_EQ(needed({.temperature = 0.0f, .repetition_penalty = 0.9f}), 0);
  EXPECT_EQ(needed({.temperature = 0.0f, .presence_penalty = -1.0f}), 0);
  EXPECT_EQ(needed({.temperature = 0.0f, .frequency_penalty = -1.0f}), 0);
  EXPECT_EQ(needed({.temperature = 0.0f, .logit_bias = {{3, -1.0f}, {4, 1.0f}}}), 0);
  EXPECT_EQ(Sampler(20).TopNeeded({.temperature = 0.0f, .frequency_penalty = 1.0f}, 64), 20);
}

TEST(SamplerTest, TheHighestLogitsChooseWhatAllOfThemDo) {
  constexpr uint32_t kSeed = 78;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  const float kTopP[] = {0.0f, 0.1f, 0.5f, 0.8f, 0.95f, 1.0f};
  const float kMinP[] = {0.0f, 0.0f, 0.05f, 0.5f, 1.0f};
  constexpr int32_t kMost = 64;
  int changed = 0;
  int not_enough = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const size_t size = 2 + random() % 300;
    std::vector<float> logits = RandomRow(size, &random, trial % 2 == 0 ? 3.0f : 0.2f);
    if (trial % 4 == 0) {
      for (float& x : logits) x = std::round(x);  // many ties, zeros of both signs
    }
    if (trial % 7 == 0) {
      for (float& x : logits) x = std::min(x, 0.5f);  // the highest among them
    }
    SamplingParams params{
        .temperature = trial % 5 == 0 ? 0.0f : 0.05f + static_cast<float>(random() % 40) / 10.0f,
        .top_k = trial % 6 == 1
                     ? 0
                     : 1 + static_cast<int32_t>(random() % std::min<size_t>(kMost, size - 1)),
        .top_p = kTopP[random() % 6],
        .min_p = kMinP[random() % 5],
        .seed = random()};
    if (params.top_k == 0) {
      params.top_p = 1.0f;
      params.min_p = std::max(params.min_p, 0.001f);
    }
    TokenHistory history;
    if (trial % 3 == 0) {
      std::vector<int32_t> prompt;
      for (size_t i = random() % size; i > 0; --i) prompt.push_back(random() % (size + 9));
      history = TokenHistory(prompt);
      for (size_t i = random() % 50; i > 0; --i) history.AddOutput(random() % size);
      const auto strength = static_cast<float>(random() % 4);
      params.repetition_penalty = 1.0f + strength * 0.1f * static_cast<float>(random() % 2);
      params.presence_penalty = strength * static_cast<float>(random() % 2);
      params.frequency_penalty = strength * 0.3f * static_cast<float>(random() % 2);
      for (size_t i = random() % 4; i > 0; --i) {
        params.logit_bias.emplace_back(random() % (size + 9),
                                       -static_cast<float>(random() % 5) * 0.5f);
      }
    }
    Sampler sampler(static_cast<int32_t>(size));
    const int32_t needed = sampler.TopNeeded(params, kMost);
    if (needed == 0) {
      ASSERT_TRUE(params.top_k > kMost / 2) << trial;
      continue;
    }
    // As many as asked for, or some more.
    std::vector<ScoredId> top;
    SelectTop(logits, needed + static_cast<int32_t>(random() % 2) * 10, &top);
    for (int64_t position = 0; position < 10; ++position) {
      const std::optional<int32_t> found = sampler.ChooseFromTop(params, history, position, top);
      if (needed == kMost) ++changed;
      if (!found.has_value()) {
        ASSERT_TRUE(trial % 3 == 0 || params.top_k == 0) << "always, without penalties";
        ++not_enough;
        continue;
      }
      std::vector<float> row = logits;
      ASSERT_EQ(*found, sampler.Choose(params, history, position, row).value())
          << "trial " << trial << " top_k " << params.top_k << " of " << size;
    }
  }
  EXPECT_GT(not_enough, 200);
  EXPECT_GT(changed, 2 * not_enough);
}

// Where an id that is not among the highest would have come in.
TEST(SamplerTest, TheHighestLogitsMayNotBeEnough) {
  Sampler sampler(6);
  SamplingParams params{.temperature = 0.0f, .presence_penalty = 2.0f};
  TokenHistory history;
  for (const int32_t id : {0, 1}) history.AddOutput(id);
  // 8 and 7 fall to 6 and 5; of the others 6.5 is the highest, and may be unknown.
  const std::vector<ScoredId> top = {{8, 0}, {7, 1}, {6.5f, 4}, {1, 2}};
  EXPECT_EQ(sampler.ChooseFromTop(params, history, 0, top), 4);
  EXPECT_EQ(sampler.ChooseFromTop(params, history, 0, std::span(top).first(3)), 4);
  EXPECT_EQ(sampler.ChooseFromTop(params, history, 0, std::span(top).first(2)), std::nullopt);
  // An equal one that is not known has the higher id.
  const std::vector<ScoredId> equal = {{8, 0}, {6, 3}};
  EXPECT_EQ(sampler.ChooseFromTop(params, history, 0, equal), 0);
  // Min-p: the last one known is still above it, or no longer, or nobody is unknown.
  params = {.temperature = 1.0f, .min_p = 0.5f};
  const std::vector<ScoredId> close = {{8, 3}, {7.9f, 1}, {7.8f, 2}, {1, 0}, {0, 4}, {0, 5}};
  EXPECT_EQ(sampler.ChooseFromTop(params, history, 0, std::span(close).first(3)), std::nullopt);
  EXPECT_NE(sampler.ChooseFromTop(params, history, 0, std::span(close).first(4)), std::nullopt);
  params.min_p = 1e-6f;
  EXPECT_EQ(sampler.ChooseFromTop(params, history, 0, std::span(close).first(4)), std::nullopt);
  EXPECT_NE(sampler.ChooseFromTop(params, history, 0, close), std::nullopt);
}

TEST(SamplerTest, DrawsWithTheProbabilitiesOfTheDefinition) {
  std::mt19937 random(5);
  const std::vector<float> logits = RandomRow(40, &random, 1.0f);
  const SamplingParams kCases[] = {
      {.temperature = 1.0f, .seed = 1},
      {.temperature = 0.7f, .top_k = 20, .top_p = 0.8f, .seed = 2},
      {.temperature = 1.5f, .top_p = 0.6f, .seed = 3},
      {.temperature = 1.0f, .min_p = 0.2f, .seed = 4},
      {.temperature = 2.0f, .top_k = 7, .seed = 5},
  };
  for (const SamplingParams& params : kCases) {
    const std::map<int32_t, double> expected = Oracle(params, logits);
    std::map<int32_t, double> seen;
    constexpr int kDraws = 40000;
    for (int64_t position = 0; position < kDraws; ++position) {
      seen[Choose(params, logits, position)] += 1;
    }
    for (const auto& [id, probability] : expected) {
      // Five standard deviations of a binomial count.
      EXPECT_NEAR(seen[id], kDraws * probability,
                  5 * std::sqrt(kDraws * probability * (1 - probability)) + 1)
          << "seed " << params.seed << " id " << id;
    }
    for (const auto& [id, count] : seen) EXPECT_EQ(expected.count(id), 1u) << id;
  }
}

TEST(SamplerTest, FullVocabularyNucleusAgreesWithTheDefinition) {
  constexpr uint32_t kSeed = 99;
  std::mt19937 random(kSeed);
  for (const float spread : {0.01f, 1.0f, 5.0f}) {
    const std::vector<float> logits = RandomRow(151936, &random, spread);
    const SamplingParams params{.temperature = 1.0f, .top_p = 0.9f, .seed = 8};
    const std::map<int32_t, double> expected = Oracle(params, logits);
    for (int64_t position = 0; position < 10; ++position) {
      EXPECT_EQ(expected.count(Choose(params, logits, position)), 1u) << "spread " << spread;
    }
  }
}

TEST(SamplerTest, DependsOnSeedAndPositionAlone) {
  std::mt19937 random(6);
  const std::vector<float> logits = RandomRow(1000, &random, 1.0f);
  const SamplingParams params{.temperature = 1.0f, .top_p = 0.95f, .seed = 123};
  Sampler fresh(1000);
  Sampler used(1000);
  for (int64_t position = 0; position < 64; ++position) {
    std::vector<float> other = RandomRow(1000, &random, 3.0f);
    ASSERT_TRUE(used.Choose({.top_k = 50, .seed = 9}, {}, position, other).ok());
    std::vector<float> a = logits;
    std::vector<float> b = logits;
    ASSERT_EQ(fresh.Choose(params, {}, position, a).value(),
              used.Choose(params, {}, position, b).value());
  }
}

TEST(SamplerTest, ExtremeDrawsStayInside) {
  std::vector<float> logits(300, 0.0f);
  SamplingParams params{.temperature = 1000.0f};
  for (int64_t position = 0; position < 2000; ++position) {
    const int32_t id = Choose(params, logits, position);
    ASSERT_GE(id, 0);
    ASSERT_LT(id, 300);
  }
  // Weights that vanish are never drawn.
  logits.assign(300, -1000.0f);
  logits[17] = 1000.0f;
  for (int64_t position = 0; position < 100; ++position) {
    ASSERT_EQ(Choose({.temperature = 1.0f}, logits, position), 17);
  }
}

TEST(SamplerTest, NonFiniteLogitsAreAnErrorThatSaysWhere) {
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const float temperature : {0.0f, 1.0f}) {
      std::vector<float> logits(100, 1.0f);
      logits[42] = bad;
      Sampler sampler(100);
      const auto chosen = sampler.Choose({.temperature = temperature}, {}, 7, logits);
      ASSERT_EQ(chosen.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(chosen.status().message()),
                  HasSubstr("logit of token id 42 for position 7"));
    }
  }
  std::vector<float> logits(100, 1.0f);
  logits[60] = kNan;  // padding beyond the tokenizer
  Sampler sampler(50);
  EXPECT_TRUE(sampler.Choose({}, {}, 7, logits).ok());
}

TEST(SamplingParamsTest, EachFieldIsCheckedAndNamed) {
  EXPECT_TRUE(ValidateSamplingParams({}, 10).ok());
  const auto message = [](const SamplingParams& params) {
    const absl::Status status = ValidateSamplingParams(params, 10);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message({.temperature = -1}), "temperature -1: expected a number from 0 to 1000");
  EXPECT_EQ(message({.temperature = kNan}), "temperature nan: expected a number from 0 to 1000");
  EXPECT_EQ(message({.top_k = -1}), "top_k -1: expected 0 (all) or more");
  EXPECT_EQ(message({.top_p = 1.5f}), "top_p 1.5: expected a number from 0 to 1");
  EXPECT_THAT(message({.min_p = -0.5f}), HasSubstr("min_p -0.5"));
  EXPECT_THAT(message({.repetition_penalty = 0}), HasSubstr("repetition_penalty 0:"));
  EXPECT_THAT(message({.presence_penalty = kInf}), HasSubstr("presence_penalty inf"));
  EXPECT_THAT(message({.frequency_penalty = kNan}), HasSubstr("frequency_penalty nan"));
  SamplingParams params;
  params.logit_bias = {{10, 1.0f}};
  EXPECT_EQ(message(params), "logit_bias for token id 10: expected ids from 0 to 9");
  params.logit_bias = {{3, kNan}};
  EXPECT_THAT(message(params), HasSubstr("logit_bias of token id 3: nan"));
}

TEST(SamplingParamsTest, RandomSeedsDiffer) { EXPECT_NE(RandomSeed(), RandomSeed()); }

}  // namespace
}  // namespace banyan::trunk
