// A sequence's bits depend on its own tokens alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/fakes/model_harness.h"
#include "tests/fakes/same_bits.h"
#include "tests/fakes/source_dir.h"

namespace banyan::test {
namespace {

using trunk::StateHistory;

constexpr uint64_t kSeed = 20240607;

std::string DemoDirectory() { return SourceDir() + "/deploy/models/demo"; }
std::string TinyDirectory() { return SourceDir() + "/tests/data/tiny"; }

std::vector<int32_t> RandomTokens(std::mt19937_64* random, int32_t count, int32_t vocab) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens)
    token = static_cast<int32_t>((*random)() % static_cast<uint64_t>(vocab));
  return tokens;
}

std::vector<int32_t> Slice(const std::vector<int32_t>& tokens, int64_t begin, int64_t end) {
  return {tokens.begin() + begin, tokens.begin() + end};
}

// A prompt and generated tokens after it.
struct Script {
  std::vector<int32_t> prompt;
  std::vector<int32_t> generated;
};

std::vector<Script> MakeScripts(int32_t vocab) {
  std::mt19937_64 random(kSeed);
  std::vector<Script> scripts;
  for (int32_t length : {1, 3, 63, 64, 65, 128, 150, 200}) {
    scripts.push_back({RandomTokens(&random, length, vocab), RandomTokens(&random, 9, vocab)});
  }
  return scripts;
}

// Alone: the prompt in one step, then token by token. Logits of every token.
std::vector<float> RunAlone(ModelHarness* model, const Script& script) {
  TestSequence sequence = model->NewSequence(script.prompt.size());
  std::vector<float> logits = model->Run({{&sequence, script.prompt, true}});
  for (int32_t token : script.generated) {
    const std::vector<float> row = model->Run({{&sequence, {token}, false}});
    logits.insert(logits.end(), row.begin(), row.end());
  }
  model->Release(&sequence);
  return logits;
}

struct Model {
  const char* name;
  bool demo;
  int32_t own_experts;  // of prompts of 65 tokens on; 0: none
};

// Of the tiny model's 16.
constexpr int32_t kOwnExperts = 7;
constexpr size_t kLongPrompt = 65;

ModelHarness::Options WithOwnExperts(const std::string& directory, int32_t own_experts) {
  ModelHarness::Options options = {.directory = directory, .long_prompt_tokens = kLongPrompt};
  options.own_experts.fill(own_experts);
  return options;
}

class ExactnessTest : public testing::TestWithParam<Model> {
 protected:
  // Less what a test changes.
  ModelHarness::Options Options() const {
    return WithOwnExperts(GetParam().demo ? DemoDirectory() : TinyDirectory(),
                          GetParam().own_experts);
  }
  ModelHarness::Options Options(int num_threads, uint64_t page_seed) const {
    ModelHarness::Options options = Options();
    options.num_threads = num_threads;
    options.page_seed = page_seed;
    return options;
  }
};

TEST_P(ExactnessTest, ThreadsMakeNoDifference) {
  ModelHarness one(Options(1, 1));
  ModelHarness two(Options(2, 2));
  ModelHarness five(Options(5, 3));
  for (const Script& script : MakeScripts(one.config().vocab_size)) {
    const std::vector<float> expected = RunAlone(&one, script);
    EXPECT_TRUE(SameBits(RunAlone(&two, script), expected)) << script.prompt.size() << " tokens";
    EXPECT_TRUE(SameBits(RunAlone(&five, script), expected)) << script.prompt.size() << " tokens";
  }
}

TEST_P(ExactnessTest, AGroupOfOneMakesNoDifference) {
  ModelHarness alone(Options());
  ModelHarness::Options group_of_one = Options();
  group_of_one.group_of_one = true;
  ModelHarness joined(group_of_one);
  for (const Script& script : MakeScripts(alone.config().vocab_size)) {
    EXPECT_TRUE(SameBits(RunAlone(&joined, script), RunAlone(&alone, script)))
        << script.prompt.size() << " tokens";
  }
}

TEST_P(ExactnessTest, StepsMayBeCutAnywhereOnTheGrid) {
  ModelHarness model(Options());
  for (const Script& script : MakeScripts(model.config().vocab_size)) {
    const std::vector<float> expected = RunAlone(&model, script);
    const auto length = static_cast<int64_t>(script.prompt.size());
    for (int64_t step : {64, 128}) {
      TestSequence sequence = model.NewSequence(script.prompt.size());
      std::vector<float> logits;
      for (int64_t at = 0; at < length; at += step) {
        const std::vector<float> part =
            model.Run({{&sequence, Slice(script.prompt, at, std::min(at + step, length)), true}});
        logits.insert(logits.end(), part.begin(), part.end());
      }
      // Generated tokens again, as after a preemption: several in one step.
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 5}, {5, 6}, {6, 9}}) {
        const std::vector<float> part =
            model.Run({{&sequence, Slice(script.generated, begin, end), false}});
        logits.insert(logits.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(SameBits(logits, expected)) << length << " tokens in steps of " << step;
      model.Release(&sequence);
    }
  }
}

TEST_P(ExactnessTest, NeighboursMakeNoDifference) {
  ModelHarness alone(Options());
  const std::vector<Script> scripts = MakeScripts(alone.config().vocab_size);
  const auto vocab = static_cast<size_t>(alone.config().vocab_size);
  std::vector<std::vector<float>> expected;
  for (const Script& script : scripts) expected.push_back(RunAlone(&alone, script));

  // All together: sequences start at different steps, prompts in pieces of random length on the
  // grid, in random order within a step, then decoding.
  for (uint64_t seed : {kSeed, kSeed + 1}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ModelHarness model(Options(2, seed));
    std::mt19937_64 random(seed);
    std::vector<TestSequence> sequences(scripts.size());
    std::vector<bool> started(scripts.size(), false);
    std::vector<std::vector<float>> logits(scripts.size());
    std::vector<int64_t> fed(scripts.size(), 0);
    const auto total = [&](size_t i) {
      return static_cast<int64_t>(scripts[i].prompt.size() + scripts[i].generated.size());
    };
    while (true) {
      std::vector<ModelHarness::Piece> pieces;
      std::vector<size_t> owners;
      std::vector<size_t> order(scripts.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), random);
      bool left = false;
      for (size_t i : order) {
        if (fed[i] == total(i)) continue;
        left = true;
        if (random() % 3 == 0) continue;  // sits this step out
        if (!started[i]) {
          sequences[i] = model.NewSequence(scripts[i].prompt.size());
          started[i] = true;
        }
        const auto prompt = static_cast<int64_t>(scripts[i].prompt.size());
        if (fed[i] < prompt) {
          const int64_t end =
              std::min(fed[i] + 64 * (1 + static_cast<int64_t>(random() % 2)), prompt);
          pieces.push_back({&sequences[i], Slice(scripts[i].prompt, fed[i], end), true});
          fed[i] = end;
        } else {
          const int64_t begin = fed[i] - prompt;
          pieces.push_back({&sequences[i], Slice(scripts[i].generated, begin, begin + 1), false});
          ++fed[i];
        }
        owners.push_back(i);
      }
      if (!left) break;
      if (pieces.empty()) continue;
      const std::vector<float> step = model.Run(pieces);
      size_t row = 0;
      for (size_t p = 0; p < pieces.size(); ++p) {
        const size_t end = row + pieces[p].tokens.size();
        auto& out = logits[owners[p]];
        out.insert(out.end(), step.begin() + static_cast<int64_t>(row * vocab),
                   step.begin() + static_cast<int64_t>(end * vocab));
        row = end;
      }
    }
    for (size_t i = 0; i < scripts.size(); ++i) {
      EXPECT_TRUE(SameBits(logits[i], expected[i])) << scripts[i].prompt.size() << " tokens";
    }
  }
}

// Tokens that turned out wrong leave no trace, wherever the state goes back to.
TEST_P(ExactnessTest, StateGoesBackToAPosition) {
  ModelHarness::Options options = Options();
  options.num_state_copies = 2;
  ModelHarness model(options);
  StateHistory& history = model.decoder().state_history();
  const std::vector<Script> scripts = MakeScripts(model.config().vocab_size);
  for (const Script& script : {scripts[1], scripts[4]}) {
    const std::vector<float> expected = RunAlone(&model, script);
    const auto vocab = static_cast<int64_t>(model.config().vocab_size);
    const auto length = static_cast<int32_t>(script.prompt.size());
    const auto expect_tail = [&](const std::vector<float>& found, int32_t first_generated) {
      const auto begin = expected.begin() + (length + first_generated) * vocab;
      return SameBits(found, {begin, begin + static_cast<int64_t>(found.size())});
    };
    TestSequence sequence = model.NewSequence(script.prompt.size());
    model.Run({{&sequence, script.prompt, true}});
    ASSERT_TRUE(history.Commit(sequence.slot, length).ok());
    // Several drafted tokens in one step, of which the last two are wrong.
    const int32_t wrong = (script.generated[2] + 1) % model.config().vocab_size;
    model.Run({{&sequence, {script.generated[0], script.generated[1], wrong, wrong}, false}});
    absl::StatusOr<int32_t> back = history.RollBack(sequence.slot, length + 2);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, length);
    sequence.position = *back;
    EXPECT_TRUE(expect_tail(model.Run({{&sequence, Slice(script.generated, 0, 2), false}}), 0));
    ASSERT_TRUE(history.Commit(sequence.slot, length + 2).ok());
    EXPECT_EQ(history.Commit(sequence.slot, length + 3).code(),
              absl::StatusCode::kResourceExhausted);
    model.Run({{&sequence, {wrong}, false}});
    back = history.RollBack(sequence.slot, length + 3);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, length + 2);
    sequence.position = *back;
    EXPECT_TRUE(expect_tail(model.Run({{&sequence, Slice(script.generated, 2, 5), false}}), 2));
    // Further back than the last copy: the first one is still there.
    back = history.RollBack(sequence.slot, length + 1);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, length);
    sequence.position = *back;
    EXPECT_TRUE(expect_tail(model.Run({{&sequence, Slice(script.generated, 0, 3), false}}), 0));
    EXPECT_EQ(history.RollBack(sequence.slot, length - 1).status().code(),
              absl::StatusCode::kNotFound);
    history.Forget(sequence.slot);
    EXPECT_EQ(history.RollBack(sequence.slot, length).status().code(), absl::StatusCode::kNotFound);
    model.Release(&sequence);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ExactnessTest,
                         testing::Values(Model{"Tiny", false, 0}, Model{"Demo", true, 0},
                                         Model{"TinyOwnExperts", false, kOwnExperts}),
                         [](const testing::TestParamInfo<Model>& param) {
                           return std::string(param.param.name);
                         });

// Prompts that are not long, and what is generated after any, are as without experts of our own;
// long ones are not, but near it: the same weights, in bf16, and sums in another order.
TEST(OwnExpertsTest, OnlyLongPromptsAreOtherwise) {
  ModelHarness without(
      {.directory = TinyDirectory(), .expert_activations = DType::kBF16, .halved_rows = 0});
  ModelHarness::Options options = WithOwnExperts(TinyDirectory(), kOwnExperts);
  options.pool_format = PoolFormat::kBF16;
  ModelHarness with(options);
  for (const Script& script : MakeScripts(with.config().vocab_size)) {
    SCOPED_TRACE(std::to_string(script.prompt.size()) + " tokens");
    const std::vector<float> expected = RunAlone(&without, script);
    const std::vector<float> found = RunAlone(&with, script);
    EXPECT_EQ(SameBits(found, expected), script.prompt.size() < kLongPrompt);
    // Some rows choose another expert: of two that are nearly as good.
    const auto vocab = static_cast<size_t>(with.config().vocab_size);
    std::vector<double> errors;
    for (size_t row = 0; row < found.size(); row += vocab) {
      double error = 0;
      double size = 0;
      for (size_t i = row; i < row + vocab; ++i) {
        error += std::pow(found[i] - expected[i], 2);
        size += std::pow(expected[i], 2);
      }
      errors.push_back(std::sqrt(error / size));
    }
    std::nth_element(errors.begin(), errors.begin() + errors.size() / 2, errors.end());
    // One rounding to bf16 in each of four layers; without these experts it is 0.8.
    EXPECT_LT(errors[errors.size() / 2], 4 * std::ldexp(1.0, -9));
  }
}

// Beyond 1024 positions keys are summed in partitions, which several threads share when decoding.
class LongContextTest : public testing::TestWithParam<bool> {};

TEST_P(LongContextTest, PartitionsMakeNoDifference) {
  std::mt19937_64 random(kSeed);
  const auto options = [](int num_threads, uint64_t page_seed) {
    ModelHarness::Options out = {
        .directory = TinyDirectory(), .num_threads = num_threads, .page_seed = page_seed};
    // Prompts of 2048 tokens on have five, from their first step on.
    if (GetParam()) out.own_experts = {2, 3, 5, 8};
    return out;
  };
  ModelHarness one(options(1, 1));
  ModelHarness four(options(4, 9));
  const Script script = {RandomTokens(&random, 2190, one.config().vocab_size),
                         RandomTokens(&random, 5, one.config().vocab_size)};
  const auto run = [&](ModelHarness* model, int64_t step) {
    TestSequence sequence = model->NewSequence(script.prompt.size());
    std::vector<float> logits;
    const auto length = static_cast<int64_t>(script.prompt.size());
    for (int64_t at = 0; at < length; at += step) {
      logits =
          model->Run({{&sequence, Slice(script.prompt, at, std::min(at + step, length)), true}},
                     ModelHarness::Rows::kLast);
    }
    for (int32_t token : script.generated) {
      const std::vector<float> row = model->Run({{&sequence, {token}, false}});
      logits.insert(logits.end(), row.begin(), row.end());
    }
    return logits;
  };
  const std::vector<float> expected = run(&one, 512);
  EXPECT_TRUE(SameBits(run(&four, 512), expected));
  EXPECT_TRUE(SameBits(run(&four, 64), expected));
}

INSTANTIATE_TEST_SUITE_P(Models, LongContextTest, testing::Bool(),
                         [](const testing::TestParamInfo<bool>& param) {
                           return param.param ? "OwnExperts" : "Hosts";
                         });

// Whatever a page or a slot held before must not show.
TEST(ReuseTest, LeftoversAreNotSeen) {
  ModelHarness fresh({.directory = TinyDirectory()});
  const std::vector<Script> scripts = MakeScripts(fresh.config().vocab_size);
  const std::vector<float> expected = RunAlone(&fresh, scripts[2]);
  ModelHarness used({.directory = TinyDirectory(), .num_slots = 1, .num_pages = 5});
  for (const Script& script : scripts) {
    RunAlone(&used, script);
    EXPECT_TRUE(SameBits(RunAlone(&used, scripts[2]), expected));
  }
}

TEST(FailureTest, ALostShardEndsTheStepAndTheSequenceCanBeRecomputed) {
  for (const int32_t own_experts : {0, kOwnExperts}) {
    ModelHarness model(WithOwnExperts(TinyDirectory(), own_experts));
    const Script script = MakeScripts(model.config().vocab_size)[4];
    ASSERT_EQ(script.prompt.size(), kLongPrompt);
    const std::vector<float> expected = RunAlone(&model, script);
    TestSequence sequence = model.NewSequence(script.prompt.size());
    model.transport().FailOnce(absl::UnavailableError("shard 1 of 2 has no replica"));
    const absl::Status status = model.Forward({{&sequence, script.prompt, true}});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(std::string(status.message()), "shard 1 of 2 has no replica");
    model.Release(&sequence);
    EXPECT_TRUE(SameBits(RunAlone(&model, script), expected));
  }
}

}  // namespace
}  // namespace banyan::test
