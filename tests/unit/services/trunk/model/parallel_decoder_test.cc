// A model on several backends against the same model on one: more ways and shapes than the golden
// models have, and what happens when something fails.
#include "services/trunk/model/parallel_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/synth/synth_config.h"
#include "common/synth/synth_plan.h"
#include "common/synth/synth_writer.h"
#include "services/trunk/ops/collective/in_process.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "tests/fakes/backends.h"
#include "tests/fakes/model_harness.h"
#include "tests/fakes/source_dir.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::trunk {
namespace {

using test::ModelHarness;
using test::TestSequence;

constexpr float kTolerance = 1e-3f;  // golden/README: an f32 engine

// tiny with more heads, so that eight ranks have two each; one KV head for four ranks, a key head
// of the DeltaNet for two; layer 1 dense. Slices of columns are multiples of 64 wide: the groups of
// 8-bit codes are the whole matrix's.
const std::vector<std::string> kManyHeads = {"num_attention_heads=16",
                                             "num_key_value_heads=2",
                                             "linear_num_key_heads=4",
                                             "linear_num_value_heads=16",
                                             "mlp_only_layers=[1]",
                                             "intermediate_size=512",
                                             "shared_expert_intermediate_size=512",
                                             "max_position_embeddings=1024"};

void WriteModel(const std::vector<std::string>& values, SynthFormat format,
                const std::string& directory) {
  const absl::StatusOr<SynthConfig> config = MakeSynthConfig("tiny", values);
  ASSERT_TRUE(config.ok()) << config.status();
  const absl::StatusOr<SynthPlan> plan = PlanSynth(*config, {.format = format});
  ASSERT_TRUE(plan.ok()) << plan.status();
  WorkerPool pool({.num_threads = 1});
  const absl::Status written =
      WriteSynth(*plan, {}, directory, pool, [](const SynthProgress&) { return true; });
  ASSERT_TRUE(written.ok()) << written;
}

std::vector<int32_t> Tokens(int32_t count) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back(i * 131 % 2048);
  return tokens;
}

struct Outcome {
  std::vector<float> logits;
  std::vector<int32_t> greedy;
};

// A prompt, then what greedy decoding makes of it.
Outcome Decode(ModelHarness* model, int32_t prompt_tokens, int32_t decoded) {
  const int32_t vocab = model->config().vocab_size;
  TestSequence sequence = model->NewSequence();
  Outcome out;
  out.logits = model->Run({{&sequence, Tokens(prompt_tokens), true}});
  for (int32_t i = 0; i < decoded; ++i) {
    out.greedy.push_back(
        test::ArgMax(&out.logits[out.logits.size() - static_cast<size_t>(vocab)], vocab));
    const std::vector<float> row = model->Run({{&sequence, {out.greedy.back()}, false}});
    out.logits.insert(out.logits.end(), row.begin(), row.end());
  }
  model->Release(&sequence);
  return out;
}

float LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float most = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, std::abs(a[i] - b[i]));
  }
  return most;
}

class WaysTest : public testing::TestWithParam<std::tuple<SynthFormat, bool, TrunkFormat>> {};

TEST_P(WaysTest, GiveTheSameLogitsAndTokens) {
  const auto [format, tied, trunk_format] = GetParam();
  test::TempDir temp;
  const std::string directory = temp.File("model");
  std::vector<std::string> values = kManyHeads;
  if (tied) values.push_back("tie_word_embeddings=true");
  WriteModel(values, format, directory);
  if (HasFatalFailure()) return;
  ModelHarness alone({.directory = directory, .num_pages = 40, .trunk_format = trunk_format});
  const Outcome expected = Decode(&alone, 70, 6);
  for (const int32_t ways : {2, 4, 8}) {
    SCOPED_TRACE(ways);
    ModelHarness model({.directory = directory,
                        .num_pages = 40,
                        .trunk_format = trunk_format,
                        .tensor_parallel = ways});
    EXPECT_EQ(model.forward_pass().limits().vocab_size, alone.config().vocab_size);
    const Outcome found = Decode(&model, 70, 6);
    const float difference = LargestDifference(found.logits, expected.logits);
    RecordProperty("difference", std::to_string(difference));
    EXPECT_LE(difference, kTolerance);
    EXPECT_EQ(found.greedy, expected.greedy);
    // The same bits again.
    EXPECT_EQ(Decode(&model, 70, 6).logits, found.logits);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, WaysTest,
                         testing::Values(std::tuple(SynthFormat::kBF16, false, TrunkFormat::kBf16),
                                         std::tuple(SynthFormat::kBF16, true, TrunkFormat::kBf16),
                                         std::tuple(SynthFormat::kBF16, false, TrunkFormat::kInt8),
                                         std::tuple(SynthFormat::kNF4, false, TrunkFormat::kBf16)));

// Parts take their slices of the whole model's pack, which one decoder alone uses as well. Whole
// groups of 64 columns are cut as kManyHeads has them: the same bits as of matrices converted part
// by part. Narrower parts lie within a group of the pack, or are converted where they do not.
TEST(PartsOfAPackTest, AreTheSlicesOfTheMatrices) {
  struct Case {
    SynthFormat format;
    TrunkFormat trunk_format;
    const char* shared_width;
    bool same_bits;
  };
  for (const Case& c : {Case{SynthFormat::kNF4, TrunkFormat::kBf16, "512", true},
                        Case{SynthFormat::kNF4, TrunkFormat::kInt8, "512", true},
                        Case{SynthFormat::kBF16, TrunkFormat::kInt8, "512", true},
                        Case{SynthFormat::kBF16, TrunkFormat::kInt8, "128", false},
                        Case{SynthFormat::kBF16, TrunkFormat::kInt8, "192", false}}) {
    SCOPED_TRACE(c.shared_width);
    test::TempDir temp;
    ModelHarness::Options options = {
        .directory = temp.File("model"), .num_pages = 40, .trunk_format = c.trunk_format};
    std::vector<std::string> values = kManyHeads;
    values.push_back(std::string("shared_expert_intermediate_size=") + c.shared_width);
    WriteModel(values, c.format, options.directory);
    if (HasFatalFailure()) return;
    const Outcome expected = Decode(std::make_unique<ModelHarness>(options).get(), 70, 6);
    ModelHarness::Options packed = options;
    packed.pool_dir = temp.File("packs");
    EXPECT_EQ(Decode(std::make_unique<ModelHarness>(packed).get(), 70, 6).logits, expected.logits);
    for (const int32_t ways : {2, 4, 8}) {
      SCOPED_TRACE(ways);
      packed.tensor_parallel = ways;
      const Outcome found = Decode(std::make_unique<ModelHarness>(packed).get(), 70, 6);
      EXPECT_EQ(found.greedy, expected.greedy);
      if (c.same_bits) {
        options.tensor_parallel = ways;
        EXPECT_EQ(found.logits,
                  Decode(std::make_unique<ModelHarness>(options).get(), 70, 6).logits);
      }
      // A part that is converted for itself has groups, hence codes, of its own.
      if (std::string(c.shared_width) == "192") continue;
      EXPECT_LE(LargestDifference(found.logits, expected.logits), kTolerance);
    }
  }
}

// With BANYAN_TEST_BACKEND=cuda on GPUs, of which two do (tests/gpu/run.sh parallel).
int32_t Ways() { return test::IsCpu(ModelHarness::DefaultBackend()) ? 4 : 2; }

std::string TinyDirectory() { return test::SourceDir() + "/tests/data/tiny"; }

// A row's bits depend neither on the rows beside it nor on how the prompt was cut.
TEST(ParallelDecoderTest, TheSameBitsAloneAndInABatch) {
  ModelHarness model({.directory = TinyDirectory(), .tensor_parallel = Ways()});
  const std::vector<int32_t> prompt = Tokens(100);
  TestSequence alone = model.NewSequence();
  std::vector<float> expected = model.Run({{&alone, prompt, true}});
  const std::vector<float> row = model.Run({{&alone, {7}, false}});
  expected.insert(expected.end(), row.begin(), row.end());

  TestSequence cut = model.NewSequence();
  TestSequence other = model.NewSequence();
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  std::vector<float> found =
      model.Run({{&cut, {prompt.begin(), prompt.begin() + 64}, true}, {&other, {3, 9}, true}});
  found.resize(64 * vocab);
  const std::vector<float> rest =
      model.Run({{&cut, {prompt.begin() + 64, prompt.end()}, true}, {&other, {1}, false}});
  found.insert(found.end(), rest.begin(), rest.begin() + static_cast<int64_t>(36 * vocab));
  const std::vector<float> last = model.Run({{&cut, {7}, false}, {&other, {2}, false}});
  found.insert(found.end(), last.begin(), last.begin() + static_cast<int64_t>(vocab));
  ASSERT_EQ(found.size(), expected.size());
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0);
}

// The highest logits of all ranks, beside all logits of other rows, against all logits alone.
TEST(ParallelDecoderTest, TheHighestLogitsAreThoseOfAllRanks) {
  const bool on_cpu = test::IsCpu(ModelHarness::DefaultBackend());
  for (int32_t count = 1; count <= (on_cpu ? 4 : std::min(test::AvailableGpus(), 2)); count *= 2) {
    ModelHarness model({.directory = TinyDirectory(), .tensor_parallel = count});
    TestSequence sequence = model.NewSequence();
    const std::vector<float> all = model.Run({{&sequence, Tokens(12), true}});
    const auto vocab = static_cast<size_t>(model.config().vocab_size);
    ForwardPass& forward = model.forward_pass();
    const int32_t most = forward.limits().max_top_logits;
    ASSERT_EQ(most, kMaxTopLogits);
    const auto part = static_cast<int32_t>(vocab) / count;
    // The last: of some ranks none or few count.
    for (const int32_t num_ids :
         {static_cast<int32_t>(vocab), std::min(part + 3, static_cast<int32_t>(vocab)), most}) {
      for (const int32_t k : {1, 20, most}) {
        SCOPED_TRACE(testing::Message() << count << " ranks, " << k << " of " << num_ids);
        const std::vector<int32_t> full = {3, 11};
        const std::vector<int32_t> top = {0, 11, 7};
        std::vector<float> logits(full.size() * vocab, NAN);
        std::vector<ScoredId> found(top.size() * static_cast<size_t>(k));
        std::vector<uint8_t> bounded(top.size());
        const absl::Status ran = forward.RunHead({.full_rows = full,
                                                  .logits = logits.data(),
                                                  .stride = static_cast<int64_t>(vocab),
                                                  .top_rows = top,
                                                  .num_ids = num_ids,
                                                  .k = k,
                                                  .top = found,
                                                  .bounded = bounded});
        ASSERT_TRUE(ran.ok()) << ran;
        for (size_t i = 0; i < full.size(); ++i) {
          EXPECT_EQ(std::memcmp(&logits[i * vocab], &all[static_cast<size_t>(full[i]) * vocab],
                                vocab * sizeof(float)),
                    0);
        }
        std::vector<ScoredId> expected;
        for (size_t i = 0; i < top.size(); ++i) {
          SelectTop(std::span(all).subspan(static_cast<size_t>(top[i]) * vocab,
                                           static_cast<size_t>(num_ids)),
                    k, &expected);
          EXPECT_EQ(bounded[i], 1);
          for (size_t j = 0; j < expected.size(); ++j) {
            EXPECT_EQ(found[i * expected.size() + j].id, expected[j].id);
            EXPECT_EQ(found[i * expected.size() + j].score, expected[j].score);
          }
        }
      }
    }
  }
}

TEST(ParallelDecoderTest, LostExpertsAreEverybodysErrorAndTheNextStepRuns) {
  ModelHarness model({.directory = TinyDirectory(), .tensor_parallel = 2});
  const Outcome expected = Decode(&model, 20, 3);
  for (int turn = 0; turn < 3; ++turn) {
    const absl::Status gone = absl::UnavailableError("shard 0: no replica");
    model.transport().FailOnce(gone);
    TestSequence lost = model.NewSequence();
    EXPECT_EQ(model.Forward({{&lost, Tokens(20), true}}), gone);
    model.Release(&lost);
    EXPECT_EQ(Decode(&model, 20, 3).logits, expected.logits);
  }
}

// The others are in the middle of a step, or begin one. Says what each call made of it.
std::string FailAlone(int32_t failing) {
  ModelHarness model({.directory = TinyDirectory(), .tensor_parallel = Ways()});
  TestSequence sequence = model.NewSequence();
  model.Run({{&sequence, Tokens(20), true}});
  std::thread fails(
      [&] { model.group().rank(failing)->Abort(absl::InternalError("a rank is gone")); });
  absl::Status step;
  while (step.ok()) step = model.Forward({{&sequence, {5}, false}});
  fails.join();
  const absl::Status later = model.Forward({{&sequence, {5}, false}});
  const absl::Status fault = model.forward_pass().Fault();
  std::vector<float> logits(static_cast<size_t>(model.config().vocab_size));
  const int32_t rows[] = {0};
  const absl::Status read = model.forward_pass().ComputeLogits(rows, logits);
  return absl::StrCat("step: ", step.ToString(), "\nlater: ", later.ToString(),
                      "\nfault: ", fault.ToString(), "\nlogits: ", read.ToString(), "\n");
}

TEST(ParallelDecoderTest, ARankThatFailsAloneEndsTheStepOfAll) {
  // A GPU names itself and what it was about to do.
  const std::string said = "INTERNAL: .*a rank is gone\n";
  const auto expected = testing::ContainsRegex("^step: " + said + "later: " + said +
                                               "fault: " + said + "logits: " + said);
  for (const int32_t failing : {0, 1, Ways() - 1}) {
    if (test::IsCpu(ModelHarness::DefaultBackend())) {
      EXPECT_THAT(FailAlone(failing), expected);
      continue;
    }
    // What such a group leaves on the GPUs ends with its process.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const auto process = [failing] {
      std::fputs(FailAlone(failing).c_str(), stderr);
      std::exit(0);
    };
    EXPECT_EXIT(process(), testing::ExitedWithCode(0), expected) << "rank " << failing;
  }
}

TEST(ParallelDecoderTest, RefusesAModelThatCannotBeCut) {
  const auto config = LoadModelConfig(TinyDirectory());
  const auto checkpoint = Checkpoint::Open(TinyDirectory());
  ASSERT_TRUE(config.ok() && checkpoint.ok());
  RankThreads threads(8, absl::ZeroDuration());
  const InProcessGroup group(8);
  WorkerPool pool({.num_threads = 1});
  std::vector<std::unique_ptr<Backend>> backends;
  for (int32_t rank = 0; rank < 8; ++rank) {
    auto backend = CreateCpuBackend({.collective = group.rank(rank)}, &pool);
    ASSERT_TRUE(backend.ok());
    backends.push_back(*std::move(backend));
  }
  test::LocalTransport experts(**checkpoint, *config);
  EXPECT_EQ(
      ParallelDecoder::Create(*config, {.num_pages = 4}, **checkpoint, backends, &threads, &experts)
          .status(),
      absl::InvalidArgumentError("--tensor_parallel 8: num_attention_heads is 4, expected a "
                                 "multiple of 8"));
}

TEST(ParallelDecoderTest, RanksReadTheModelOnceAndWhatAllOfThemHaveTwice) {
  ModelHarness one({.directory = TinyDirectory()});
  ModelHarness two({.directory = TinyDirectory(), .tensor_parallel = 2});
  TestSequence a = one.NewSequence();
  TestSequence b = two.NewSequence();
  ASSERT_TRUE(one.Forward({{&a, {1, 2, 3}, true}}).ok());
  ASSERT_TRUE(two.Forward({{&b, {1, 2, 3}, true}}).ok());
  // Router, gates: 128 columns of bf16 in 16 + 1 rows of four layers, once more.
  EXPECT_EQ(two.forward_pass().weight_bytes_read(),
            one.forward_pass().weight_bytes_read() + 4 * 17 * 128 * 2);
}

}  // namespace
}  // namespace banyan::trunk
