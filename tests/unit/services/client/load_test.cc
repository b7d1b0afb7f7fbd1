#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/strings.h"
#include "services/client/connection/server_connection.h"
#include "services/client/load/eval_file.h"
#include "services/client/load/load_run.h"
#include "services/client/load/report.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::client {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Answers with the prompt's ids, one message each; refuses prompts that start with 13. Counts how
// many calls run at the same time: each waits for `gather` calls to be there (at most a second).
class EchoServer final : public inference::v1::Inference::Service {
 public:
  explicit EchoServer(int gather) : gather_(gather) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~EchoServer() override { server_->Shutdown(); }

  std::string address() const { return "unix:" + temp_.path() + "/echo.sock"; }
  int most_at_once() const {
    absl::MutexLock lock(&mutex_);
    return most_at_once_;
  }

  grpc::Status Generate(grpc::ServerContext*, const GenerateRequest* request,
                        grpc::ServerWriter<GenerateResponse>* writer) override {
    const auto& ids = request->token_ids().ids();
    if (ids[0] == 13) return {grpc::StatusCode::RESOURCE_EXHAUSTED, "queue of 64 is full"};
    {
      absl::MutexLock lock(&mutex_);
      most_at_once_ = std::max(most_at_once_, ++at_once_);
      gathered_ = gathered_ || at_once_ >= gather_;
      mutex_.AwaitWithTimeout(absl::Condition(&gathered_), absl::Seconds(10));
    }
    GenerateResponse response;
    response.mutable_started()->set_prompt_tokens(ids.size());
    writer->Write(response);
    for (int32_t id : ids) {
      response.Clear();
      response.mutable_chunk()->add_token_ids(id);
      writer->Write(response);
    }
    {
      absl::MutexLock lock(&mutex_);
      --at_once_;
    }
    response.Clear();
    response.mutable_finished()->set_reason(inference::v1::STOP);
    writer->Write(response);
    return grpc::Status::OK;
  }

 private:
  const test::TempDir temp_;
  const int gather_;
  mutable absl::Mutex mutex_;
  int at_once_ ABSL_GUARDED_BY(mutex_) = 0;
  int most_at_once_ ABSL_GUARDED_BY(mutex_) = 0;
  bool gathered_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<grpc::Server> server_;
};

GenerateRequest Prompt(std::vector<int32_t> ids) {
  GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  return request;
}

TEST(RunLoad, ClosedLoopKeepsExactlySoManyUnderWay) {
  EchoServer server(/*gather=*/5);
  LoadOptions options;
  options.address = server.address();
  options.num_requests = 23;
  options.concurrency = 5;
  int64_t last_progress = 0;
  const auto outcomes = RunLoad(
      MakeChannel(server.address()), options,
      [](int64_t i) {
        return Prompt({100, static_cast<int32_t>(i)});
      },
      [&](int64_t done) { last_progress = done; });
  ASSERT_EQ(outcomes.size(), 23u);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    EXPECT_TRUE(outcomes[i].status.ok()) << outcomes[i].status;
    EXPECT_EQ(outcomes[i].index, static_cast<int64_t>(i));
    EXPECT_THAT(outcomes[i].generation.token_ids, ElementsAre(100, static_cast<int32_t>(i)));
  }
  EXPECT_EQ(server.most_at_once(), 5);
  EXPECT_EQ(last_progress, 23);
}

TEST(RunLoad, CountsErrorsByCodeAndGoesOn) {
  EchoServer server(/*gather=*/1);
  LoadOptions options;
  options.address = server.address();
  options.num_requests = 9;
  options.rate = 1e6;  // open loop: all due at once
  const auto outcomes = RunLoad(
      MakeChannel(server.address()), options,
      [](int64_t i) { return Prompt({i % 3 == 0 ? 13 : 1}); }, [](int64_t) {});
  const LoadReport report = MakeReport(outcomes);
  EXPECT_EQ(report.num_requests, 9);
  EXPECT_EQ(report.num_succeeded, 6);
  EXPECT_THAT(report.errors, ElementsAre(testing::Pair("RESOURCE_EXHAUSTED", 3)));
  EXPECT_EQ(report.output_tokens, 6);
  EXPECT_THAT(report.ToText(), HasSubstr("3 x RESOURCE_EXHAUSTED: " + server.address() +
                                         " is overloaded: queue of 64 is full"));
  const nlohmann::ordered_json json = report.ToJson();
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"], 3);
  EXPECT_EQ(json["succeeded"], 6);
}

TEST(PoissonArrivals, AreSeededAndHaveTheirRate) {
  const uint64_t seed = 20240601;
  SCOPED_TRACE(seed);
  const auto arrivals = PoissonArrivals(50, 20000, seed);
  EXPECT_EQ(arrivals, PoissonArrivals(50, 20000, seed));
  EXPECT_NE(arrivals, PoissonArrivals(50, 20000, seed + 1));
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  // The sum of n exponential gaps has mean n/rate and deviation sqrt(n)/rate: within 4 of them.
  EXPECT_NEAR(arrivals.back(), 400, 4 * std::sqrt(20000.0) / 50);
}

TEST(Percentile, TakesTheNearestRank) {
  std::vector<double> none;
  EXPECT_EQ(Percentile(none, 50), 0);
  std::vector<double> one = {7};
  EXPECT_EQ(Percentile(one, 1), 7);
  std::vector<double> five = {5, 1, 4, 2, 3};
  EXPECT_EQ(Percentile(five, 50), 3);
  EXPECT_EQ(Percentile(five, 90), 5);
  EXPECT_EQ(Percentile(five, 20), 1);
  EXPECT_EQ(Percentile(five, 21), 2);
}

TEST(MakeReport, OfNothingIsZero) {
  const LoadReport report = MakeReport({});
  EXPECT_EQ(report.OutputTokensPerSecond(), 0);
  EXPECT_THAT(report.ToText(), HasSubstr("0 of 0 requests"));
}

// --- eval files --------------------------------------------------------------------------------

class EvalFile : public testing::Test {
 protected:
  absl::StatusOr<std::vector<EvalCase>> Load(const std::string& text) {
    const std::string path = temp_.path() + "/eval.json";
    std::ofstream(path) << text;
    return LoadEvalFile(path);
  }
  const test::TempDir temp_;
};

TEST_F(EvalFile, ReadsTheDemoModels) {
  const auto cases = LoadEvalFile(BANYAN_SOURCE_DIR "/deploy/models/demo/eval.json");
  ASSERT_TRUE(cases.ok()) << cases.status();
  EXPECT_EQ(cases->size(), 240u);
  EXPECT_EQ(std::count_if(cases->begin(), cases->end(), [](auto& c) { return c.has_one_answer; }),
            214);
}

TEST_F(EvalFile, NamesTheBadCase) {
  const auto error = [&](const std::string& text) {
    return std::string(ToStd(Load(text).status().message()));
  };
  EXPECT_THAT(error("{"), HasSubstr("eval.json: expected an object with a list \"cases\""));
  EXPECT_THAT(error("{\"cases\": []}"), HasSubstr("no cases"));
  const std::string good = R"({"prompt_ids": [1], "answer_ids": [2]})";
  EXPECT_THAT(error("{\"cases\": [" + good + ", 3]}"), HasSubstr("case 1: expected an object"));
  EXPECT_THAT(error("{\"cases\": [" + good + R"(, {"prompt_ids": [], "answer_ids": [2]}]})"),
              HasSubstr("case 1: expected a list of token ids \"prompt_ids\""));
  EXPECT_THAT(error(R"({"cases": [{"prompt_ids": [1], "answer_ids": [-2]}]})"),
              HasSubstr("case 0: \"answer_ids\" holds -2, expected token ids"));
  EXPECT_THAT(std::string(ToStd(LoadEvalFile("/none.json").status().message())),
              HasSubstr("cannot read /none.json"));
}

LoadOutcome Answered(std::vector<int32_t> ids, inference::v1::FinishReason reason) {
  LoadOutcome outcome;
  outcome.generation.token_ids = std::move(ids);
  outcome.generation.finished.set_reason(reason);
  return outcome;
}

LoadOutcome Scored(const EvalCase& eval_case, float logprob) {
  LoadOutcome outcome;
  std::vector<int32_t> ids = eval_case.prompt_ids;
  ids.insert(ids.end(), eval_case.answer_ids.begin(), eval_case.answer_ids.end());
  for (size_t i = 1; i < ids.size(); ++i) {
    auto* record = outcome.generation.started.add_prompt_logprobs();
    record->set_token_id(ids[i]);
    // Only the answer's records may count.
    record->set_logprob(i >= eval_case.prompt_ids.size() ? logprob : -99.0f);
  }
  return outcome;
}

TEST_F(EvalFile, ScoresAnswersAndPerplexity) {
  const std::vector<EvalCase> cases = {
      {{1, 2}, {3, 4, 9}, true}, {{1}, {5, 9}, true}, {{1}, {6, 9}, false}, {{1}, {7}, true}};
  const std::vector<LoadOutcome> answers = {
      Answered({3, 4}, inference::v1::STOP),     // without its end token: the same
      Answered({5, 8, 9}, inference::v1::STOP),  // goes on: not the same
      Answered({0}, inference::v1::STOP),        // has many right answers
      Answered({7}, inference::v1::LENGTH)};     // did not end by itself
  std::vector<LoadOutcome> scores;
  for (const EvalCase& eval_case : cases) scores.push_back(Scored(eval_case, -0.5f));
  const auto score = ScoreEval(cases, {9}, answers, scores);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->num_cases, 4);
  EXPECT_EQ(score->num_one_answer, 3);
  EXPECT_EQ(score->num_exact, 1);
  EXPECT_THAT(score->mismatches, ElementsAre(1, 3));
  EXPECT_EQ(score->num_answer_tokens, 8);
  EXPECT_NEAR(score->perplexity, std::exp(0.5), 1e-6);

  scores[2].generation.started.mutable_prompt_logprobs()->RemoveLast();
  EXPECT_THAT(std::string(ToStd(ScoreEval(cases, {9}, answers, scores).status().message())),
              HasSubstr("case 2: 1 records of prompt_logprobs, expected 2"));
}

TEST_F(EvalFile, MakesGreedyRequests) {
  const EvalCase eval_case{{1, 2}, {3, 4, 9}, true};
  EXPECT_TRUE(AnswerRequest(eval_case).sampling().has_temperature());
  EXPECT_THAT(AnswerRequest(eval_case).token_ids().ids(), ElementsAre(1, 2));
  EXPECT_THAT(ScoreRequest(eval_case).token_ids().ids(), ElementsAre(1, 2, 3, 4, 9));
  EXPECT_TRUE(ScoreRequest(eval_case).prompt_logprobs());
}

}  // namespace
}  // namespace banyan::client
