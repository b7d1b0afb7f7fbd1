// The trained demo model answers its held-out questions, token for token.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/fakes/model_harness.h"
#include "tests/fakes/sanitized.h"
#include "tests/fakes/source_dir.h"

namespace banyan::test {
namespace {

struct Question {
  std::vector<int32_t> prompt;
  std::vector<int32_t> answer;  // ends with the end token
  bool single_answer = false;
};

// By the number of devices that share the trunk.
class DemoModelTest : public testing::TestWithParam<int32_t> {
 protected:
  DemoModelTest()
      : model_({.directory = Directory(), .num_threads = 1, .tensor_parallel = GetParam()}) {
    std::ifstream in(Directory() + "/eval.json");
    const nlohmann::json eval = nlohmann::json::parse(in);
    expected_perplexity_ = eval.at("answer_perplexity_f32").get<double>();
    answer_tokens_ = eval.at("answer_tokens").get<int64_t>();
    for (const nlohmann::json& item : eval.at("cases")) {
      questions_.push_back({item.at("prompt_ids").get<std::vector<int32_t>>(),
                            item.at("answer_ids").get<std::vector<int32_t>>(),
                            item.at("greedy_matches").get<bool>()});
    }
  }

  static std::string Directory() { return SourceDir() + "/deploy/models/demo"; }

  ModelHarness model_;
  std::vector<Question> questions_;
  double expected_perplexity_ = 0;
  int64_t answer_tokens_ = 0;
};

TEST_P(DemoModelTest, AnswersTwoHundredAndFourteenQuestionsExactly) {
  const int32_t vocab = model_.config().vocab_size;
  std::vector<const Question*> waiting;
  for (const Question& question : questions_) {
    if (question.single_answer) waiting.push_back(&question);
  }
  ASSERT_EQ(waiting.size(), 214u);
  size_t asked = 0;

  struct Running {
    const Question* question;
    TestSequence sequence;
    std::vector<int32_t> answer;
  };
  constexpr size_t kAtOnce = 16;
  std::vector<Running> running;
  size_t exact = 0;
  size_t next = 0;
  while (next < waiting.size() || !running.empty()) {
    if (next < waiting.size() && running.size() < kAtOnce) {
      Running started{waiting[next], model_.NewSequence(), {}};
      next += kInputStep;
      ++asked;
      const std::vector<float> logits = model_.Run(
          {{&started.sequence, started.question->prompt, true}}, ModelHarness::Rows::kLast);
      started.answer.push_back(ArgMax(logits.data(), vocab));
      running.push_back(std::move(started));
      continue;
    }
    std::vector<ModelHarness::Piece> pieces;
    for (Running& r : running) pieces.push_back({&r.sequence, {r.answer.back()}, false});
    const std::vector<float> logits = model_.Run(pieces);
    std::vector<Running> still;
    for (size_t i = 0; i < running.size(); ++i) {
      Running& r = running[i];
      r.answer.push_back(ArgMax(logits.data() + static_cast<int64_t>(i) * vocab, vocab));
      if (r.answer.size() < r.question->answer.size()) {
        still.push_back(std::move(r));
        continue;
      }
      if (r.answer == r.question->answer) ++exact;
      model_.Release(&r.sequence);
    }
    running = std::move(still);
  }
  EXPECT_EQ(exact, asked) << "all 214 where all are asked";
}

TEST_P(DemoModelTest, PerplexityOfTheAnswers) {
  const int32_t vocab = model_.config().vocab_size;
  double sum = 0;
  int64_t count = 0;
  for (size_t asked = 0; asked < questions_.size(); asked += kInputStep) {
    const Question& question = questions_[asked];
    std::vector<int32_t> tokens = question.prompt;
    tokens.insert(tokens.end(), question.answer.begin(), question.answer.end());
    TestSequence sequence = model_.NewSequence();
    const std::vector<float> logits = model_.Run({{&sequence, tokens, true}});
    model_.Release(&sequence);
    for (size_t i = question.prompt.size(); i < tokens.size(); ++i) {
      const float* row = logits.data() + static_cast<int64_t>(i - 1) * vocab;
      const double max = row[ArgMax(row, vocab)];
      double total = 0;
      for (int32_t v = 0; v < vocab; ++v) total += std::exp(row[v] - max);
      sum += max + std::log(total) - row[tokens[i]];
      ++count;
    }
  }
  const double perplexity = std::exp(sum / static_cast<double>(count));
  if (kSanitized) {
    EXPECT_LT(perplexity, 1.3) << "of every eighth question";
    return;
  }
  EXPECT_EQ(count, answer_tokens_);
  EXPECT_NEAR(perplexity, expected_perplexity_, 0.0005);
}

INSTANTIATE_TEST_SUITE_P(Ways, DemoModelTest, testing::ValuesIn(ModelHarness::Ways()));

}  // namespace
}  // namespace banyan::test
