// The demo model's answers through the full path (files, trunk process, expert processes, gRPC):
// the single-answer cases exactly, one at a time and sixteen at a time, and the perplexity of all
// answers, for 1..4 shards, both splits, TCP and Unix sockets; and with each pool format, for rows
// in f32 and in bf16.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/sanitized.h"
#include "tests/integration/cluster.h"
#include "tests/integration/eval_cases.h"
#include "tests/integration/eval_run.h"

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

  // Asks all single-answer cases, `concurrency` at a time.
  void ExpectExactAnswers(int concurrency) {
    const ExactAnswers answers = AskSingleAnswers(*cluster_, set_, concurrency);
    EXPECT_EQ(answers.asked, (214 + kInputStep - 1) / kInputStep);
    EXPECT_THAT(answers.wrong, ::testing::IsEmpty());
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
  const absl::StatusOr<std::vector<float>> logprobs = AnswerLogprobs(*cluster_, set_, 1);
  ASSERT_TRUE(logprobs.ok()) << logprobs.status();
  const double perplexity = Perplexity(*logprobs);
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
