// Steps in two halves against the same steps undivided: the same bits, the order of the calls, and
// failures in either half.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/fakes/model_harness.h"
#include "tests/fakes/same_bits.h"
#include "tests/fakes/source_dir.h"

namespace banyan::trunk {
namespace {

using test::ModelHarness;
using test::SameBits;
using test::TestSequence;
using ::testing::ElementsAre;

ModelHarness::Options Tiny(int32_t halved_rows, int32_t ways = 1) {
  return {.directory = test::SourceDir() + "/tests/data/tiny",
          .halved_rows = halved_rows,
          .tensor_parallel = ways};
}

std::vector<int32_t> Tokens(int32_t count, int32_t seed = 0) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((i * 131 + seed * 977 + 5) % 2048);
  return tokens;
}

// Dispatches that a Combine of an earlier batch came after: two batches were under way.
int CallsAhead(const std::vector<std::string>& calls) {
  int under_way = 0;
  int ahead = 0;
  for (const std::string& call : calls) {
    if (call[0] == 'd' && ++under_way == 2) ++ahead;
    if (call[0] == 'c') --under_way;
  }
  return ahead;
}

// 2: on GPUs under BANYAN_TEST_BACKEND=cuda that takes two of them.
class HalvesTest : public testing::TestWithParam<int32_t> {};

TEST_P(HalvesTest, PromptsOfAnyLengthGiveTheSameBits) {
  ModelHarness undivided(Tiny(0, GetParam()));
  ModelHarness halves(Tiny(2, GetParam()));
  for (const int32_t length : {1, 63, 64, 65, 100, 127, 128, 129, 192, 200, 321, 448, 511}) {
    SCOPED_TRACE(length);
    std::vector<float> expected;
    for (ModelHarness* model : {&undivided, &halves}) {
      TestSequence sequence = model->NewSequence();
      model->transport().TakeCalls();
      std::vector<float> logits = model->Run({{&sequence, Tokens(length), true}});
      EXPECT_EQ(CallsAhead(model->transport().TakeCalls()) > 0, model == &halves && length > 64);
      // What is in state and pages then: tokens that decode.
      for (const int32_t token : {7, 1999}) {
        const std::vector<float> row = model->Run({{&sequence, {token}, false}});
        logits.insert(logits.end(), row.begin(), row.end());
      }
      model->Release(&sequence);
      if (model == &undivided) {
        expected = logits;
      } else {
        EXPECT_TRUE(SameBits(logits, expected));
      }
    }
  }
}

// Rows that decode, prompts at their start, in the middle and at their end, tokens that come back.
TEST_P(HalvesTest, RaggedBatchesGiveTheSameBits) {
  std::vector<std::vector<float>> results;
  for (const int32_t halved_rows : {0, 2, 150}) {
    ModelHarness model(Tiny(halved_rows, GetParam()));
    std::vector<TestSequence> s;
    for (int i = 0; i < 7; ++i) s.push_back(model.NewSequence());
    std::vector<float> all;
    const auto run = [&](const std::vector<ModelHarness::Piece>& pieces) {
      const std::vector<float> logits = model.Run(pieces);
      all.insert(all.end(), logits.begin(), logits.end());
    };
    run({{&s[0], Tokens(70, 0), true},
         {&s[1], Tokens(64, 1), true},
         {&s[2], Tokens(128, 2), true}});
    run({{&s[0], {3}, false},
         {&s[1], Tokens(1, 9), true},
         {&s[2], Tokens(192, 3), true},
         {&s[3], Tokens(5, 4), true},
         {&s[4], Tokens(130, 5), true}});
    run({{&s[0], {4}, false}, {&s[1], {5}, false}, {&s[3], {6}, false}});
    run({{&s[0], {8}, false},
         {&s[1], Tokens(90, 6), false},
         {&s[3], {6}, false},
         {&s[5], Tokens(300, 7), true}});
    run({{&s[5], {1}, false}, {&s[6], Tokens(129, 8), true}});
    results.push_back(std::move(all));
  }
  EXPECT_TRUE(SameBits(results[1], results[0]));
  EXPECT_TRUE(SameBits(results[2], results[0]));
}

INSTANTIATE_TEST_SUITE_P(Ways, HalvesTest, testing::ValuesIn(ModelHarness::Ways()));

TEST(HalvesOrderTest, TheSecondHalfIsSentBeforeTheFirstIsAwaited) {
  ModelHarness model(Tiny(100));
  TestSequence sequence = model.NewSequence();
  model.transport().TakeCalls();
  ASSERT_TRUE(model.Forward({{&sequence, Tokens(128), true}}).ok());
  ASSERT_EQ(model.config().num_hidden_layers, 4);
  EXPECT_THAT(model.transport().TakeCalls(),
              ElementsAre("d0", "d0", "c0", "d1", "c0", "d1", "c1", "d2", "c1", "d2", "c2", "d3",
                          "c2", "d3", "c3", "c3"));
  // Fewer rows than that run undivided.
  ASSERT_TRUE(model.Forward({{&sequence, Tokens(99), true}}).ok());
  EXPECT_THAT(model.transport().TakeCalls(),
              ElementsAre("d0", "c0", "d1", "c1", "d2", "c2", "d3", "c3"));
}

TEST(HalvesBf16Test, RowsInBf16GiveTheSameBits) {
  std::vector<std::vector<float>> results;
  for (const int32_t halved_rows : {0, 2}) {
    ModelHarness::Options options = Tiny(halved_rows);
    options.expert_activations = DType::kBF16;
    ModelHarness model(options);
    std::vector<float> all;
    for (const int32_t length : {65, 130, 200, 333, 511}) {
      TestSequence sequence = model.NewSequence();
      const std::vector<float> logits = model.Run({{&sequence, Tokens(length), true}});
      all.insert(all.end(), logits.begin(), logits.end());
      model.Release(&sequence);
    }
    results.push_back(std::move(all));
  }
  EXPECT_TRUE(SameBits(results[1], results[0]));
}

class HalvesFailureTest : public testing::TestWithParam<int32_t> {};

// Wherever a call fails: the step fails with that, nothing of it stays under way, and the next
// steps, halved and not, are what they would have been.
TEST_P(HalvesFailureTest, AFailedCallOfEitherHalfFailsTheStepAndNoOther) {
  ModelHarness model(Tiny(100, GetParam()));
  TestSequence first = model.NewSequence();
  const std::vector<float> expected = model.Run({{&first, Tokens(200), true}});
  const std::vector<float> row = model.Run({{&first, {7}, false}});
  model.Release(&first);
  const absl::Status lost = absl::UnavailableError("shard 1 of 2: gone");
  const int calls = 2 * model.config().num_hidden_layers;
  for (int at = 0; at < calls; ++at) {
    for (const bool dispatch : {false, true}) {
      SCOPED_TRACE(std::to_string(at) + (dispatch ? " dispatch" : " combine"));
      TestSequence sequence = model.NewSequence();
      if (dispatch) {
        model.transport().FailDispatchOnce(lost, at);
      } else {
        model.transport().FailOnce(lost, at);
      }
      EXPECT_EQ(model.Forward({{&sequence, Tokens(200), true}}), lost);
      EXPECT_EQ(model.transport().num_under_way(), 0);
      EXPECT_TRUE(model.forward_pass().Fault().ok());
      sequence.position = 0;
      EXPECT_TRUE(SameBits(model.Run({{&sequence, Tokens(200), true}}), expected));
      EXPECT_TRUE(SameBits(model.Run({{&sequence, {7}, false}}), row));
      model.Release(&sequence);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, HalvesFailureTest, testing::ValuesIn(ModelHarness::Ways()));

}  // namespace
}  // namespace banyan::trunk
