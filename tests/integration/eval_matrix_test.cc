// The demo model's answers through the full path (files, trunk process, expert processes, gRPC):
// the single-answer cases exactly, one at a time and sixteen at a time, and the perplexity of all
// answers, for 1..4 shards, both splits, TCP and Unix sockets; and with each pool format, for rows
// in f32 and in bf16.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/sanitized.h"
#include "tests/integration/cluster.h"
#include "tests/integration/eval_cases.h"

namespace banyan::test {
namespace {

// shards, split, transport (tcp, unix, shm), pool format, type of the rows
using Config = std::tuple<int, std::string, std::string, std::string, std::string>;

class EvalMatrixTest : public ::testing::TestWithParam<Config> {
 protected:
  void SetUp() override {
    const auto& [num_shards, split, transport, pool_format, activations] = GetParam();
    ClusterOptions options;
    options.model_dir = DemoModelDir();
    options.num_shards = num_shards;
    options.split = split;
    options.unix_sockets = transport != "tcp";
    options.trunk_args = {
        "--max_sequences=16", "--expert_activations=" + activations,
        transport == "shm" ? "--expert_transport=auto" : "--expert_transport=grpc"};
    options.expert_args = {"--pool_format=" + pool_format, "--pool_dir=" + packs_.path()};
    cluster_ = std::make_unique<Cluster>(options);
    ASSERT_TRUE(cluster_->Start().ok());
    const absl::Status serving = cluster_->AwaitServing(absl::Seconds(60));
    ASSERT_TRUE(serving.ok()) << serving;
  }

  static inference::v1::GenerateRequest GreedyRequest(const EvalCase& eval_case) {
    inference::v1::GenerateRequest request;
    request.mutable_token_ids()->mutable_ids()->Assign(eval_case.prompt_ids.begin(),
                                                       eval_case.prompt_ids.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_new_tokens(256);
    return request;
  }

  // Asks all single-answer cases, `concurrency` at a time.
  void ExpectExactAnswers(int concurrency) {
    std::vector<size_t> asked;
    for (size_t k = 0; k < set_.cases.size(); ++k) {
      if (set_.cases[k].single_answer) asked.push_back(k);
    }
    ASSERT_EQ(asked.size(), 214u);
    std::atomic<size_t> next{0};
    std::atomic<size_t> exact{0};
    std::vector<std::thread> clients;
    for (int i = 0; i < concurrency; ++i) {
      clients.emplace_back([&] {
        const auto stub = cluster_->NewStub();
        for (size_t idx = next.fetch_add(kInputStep); idx < asked.size();
             idx = next.fetch_add(kInputStep)) {
          const size_t k = asked[idx];
          const EvalCase& eval_case = set_.cases[k];
          const absl::StatusOr<Answer> answer = Generate(*stub, GreedyRequest(eval_case));
          if (!answer.ok()) {
            ADD_FAILURE() << "case " << k << ": " << answer.status();
          } else if (answer->ids == eval_case.answer_ids) {
            ++exact;
          } else {
            ADD_FAILURE() << "case " << k << ": answered " << answer->text;
          }
        }
      });
    }
    for (std::thread& client : clients) client.join();
    EXPECT_EQ(exact, (asked.size() + kInputStep - 1) / kInputStep) << "of 214 where all are asked";
  }

  const EvalSet set_ = LoadEvalSet();
  TempDir packs_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_P(EvalMatrixTest, AnswersExactlyAloneAndInCompany) {
  const auto& [num_shards, split, transport, pool_format, activations] = GetParam();
  if (pool_format == "auto" || activations == "bf16") {
    ExpectExactAnswers(1);
  }
  ExpectExactAnswers(16);
}

TEST_P(EvalMatrixTest, AnswerPerplexity) {
  const auto stub = cluster_->NewStub();
  double negative_log_likelihood = 0;
  int num_tokens = 0;
  for (size_t i = 0; i < set_.cases.size(); i += kInputStep) {
    const EvalCase& eval_case = set_.cases[i];
    inference::v1::GenerateRequest request = GreedyRequest(eval_case);
    for (int32_t id : eval_case.answer_ids) request.mutable_token_ids()->add_ids(id);
    request.mutable_sampling()->set_max_new_tokens(0);
    request.set_prompt_logprobs(true);
    const absl::StatusOr<Answer> answer = Generate(*stub, request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    const auto& logprobs = answer->started.prompt_logprobs();
    const auto prompt_size = static_cast<int>(eval_case.prompt_ids.size());
    ASSERT_EQ(logprobs.size(), prompt_size - 1 + static_cast<int>(eval_case.answer_ids.size()));
    // Record i is that of prompt token i + 1.
    for (size_t k = 0; k < eval_case.answer_ids.size(); ++k) {
      const auto& record = logprobs[prompt_size - 1 + static_cast<int>(k)];
      ASSERT_EQ(record.token_id(), eval_case.answer_ids[k]);
      negative_log_likelihood -= record.logprob();
      ++num_tokens;
    }
  }
  const double perplexity = std::exp(negative_log_likelihood / num_tokens);
  RecordProperty("perplexity", fmt::format("{:.9f}", perplexity));
  if (kSanitized) {
    EXPECT_LT(perplexity, 1.3) << "of every eighth case";
    return;
  }
  EXPECT_NEAR(perplexity, set_.answer_perplexity, 0.0005);
  if (std::get<3>(GetParam()) == "auto" && std::get<4>(GetParam()) == "f32") return;
  EXPECT_GE(perplexity, 1.1063);
  EXPECT_LE(perplexity, 1.1070);
}

std::string ConfigName(const ::testing::TestParamInfo<Config>& param_info) {
  const auto& [num_shards, split, transport, pool_format, activations] = param_info.param;
  return fmt::format("{}_{}_{}_{}_{}", num_shards, split, transport, pool_format, activations);
}

INSTANTIATE_TEST_SUITE_P(Clusters, EvalMatrixTest,
                         ::testing::Combine(::testing::Range(1, 5),
                                            ::testing::Values("width", "experts"),
                                            ::testing::Values("tcp", "unix", "shm"),
                                            ::testing::Values("auto"), ::testing::Values("f32")),
                         ConfigName);

// The kernels of every format for both types of the rows, cut and whole. NF4 is cut between blocks
// of 64 columns, as wide as the demo model's experts.
INSTANTIATE_TEST_SUITE_P(PoolFormats, EvalMatrixTest,
                         ::testing::Values(Config{2, "width", "unix", "int8", "f32"},
                                           Config{2, "width", "shm", "int4", "f32"},
                                           Config{2, "experts", "shm", "nf4", "f32"},
                                           Config{1, "width", "unix", "int8", "bf16"},
                                           Config{1, "width", "shm", "int4", "bf16"},
                                           Config{1, "width", "shm", "nf4", "bf16"},
                                           Config{1, "width", "shm", "auto", "bf16"},
                                           Config{2, "width", "shm", "auto", "bf16"}),
                         ConfigName);

}  // namespace
}  // namespace banyan::test
