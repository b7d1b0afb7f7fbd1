// Experts of prompts that a trunk on the CPU computes with weights from the pools of real hosts
// (docs/adr/prompt-experts.md): the demo model's answers, pools that are not lent, a host that is
// killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "services/client/connection/metrics_scrape.h"
#include "tests/fakes/same_bits.h"
#include "tests/fakes/sanitized.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/cluster.h"
#include "tests/integration/eval_cases.h"
#include "tests/integration/eval_run.h"

namespace banyan::test {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Pool {
  std::string name;
  int num_shards;
  std::string split;
  std::string format;
  std::string memory;
};

// Long prompts are those of `tokens`, and half of the 32 experts are the trunk's.
std::vector<std::string> HalfFrom(int tokens) {
  return {"--expert_activations=bf16", "--prompt_experts=50",
          fmt::format("--long_prompt_tokens={}", tokens)};
}

class PromptExpertsProcessTest : public ::testing::Test {
 protected:
  // A model of its own, so that no other test has its segments.
  void SetUp() override {
    std::filesystem::copy(DemoModelDir(), model_.path(), std::filesystem::copy_options::recursive);
    std::ofstream(model_.File("config.json"), std::ios::app) << fmt::format("{:{}}", "", getpid());
  }
  void TearDown() override {
    cluster_.reset();
    if (fingerprint_.empty()) return;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      const std::string name = entry.path().filename();
      if (name.rfind("banyan-" + fingerprint_.substr(0, 16), 0) == 0) {
        std::filesystem::remove(entry.path());
      }
    }
  }

  // Hosts and a trunk that may not get as far as serving.
  void Launch(const Pool& pool, std::vector<std::string> trunk_args) {
    ClusterOptions options;
    options.model_dir = model_.path();
    options.num_shards = pool.num_shards;
    options.split = pool.split;
    options.unix_sockets = true;
    options.trunk_args = std::move(trunk_args);
    options.trunk_args.insert(options.trunk_args.end(),
                              {"--backend=cpu", "--metrics_listen=127.0.0.1:0"});
    options.expert_args = {"--pool_dir=" + packs_.path(), "--pool_format=" + pool.format,
                           "--pool_memory=" + pool.memory};
    cluster_ = std::make_unique<Cluster>(options);
    ASSERT_TRUE(cluster_->Start().ok());
  }

  void Start(const Pool& pool, std::vector<std::string> trunk_args) {
    ASSERT_NO_FATAL_FAILURE(Launch(pool, std::move(trunk_args)));
    const absl::Status serving = cluster_->AwaitServing(kPatience);
    ASSERT_TRUE(serving.ok()) << serving;
    stub_ = cluster_->NewStub();
    inference::v1::GetModelInfoResponse info;
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->GetModelInfo(&context, {}, &info).ok());
    fingerprint_ = info.fingerprint();
  }

  // Of the trunk's experts, as it says on its page of metrics.
  double Gauge() const {
    const std::string key = "metrics_listening address=";
    const auto line = cluster_->trunk()->WaitForLine(key, kPatience);
    EXPECT_TRUE(line.ok()) << line.status();
    const std::string rest = line->substr(line->find(key) + key.size());
    const auto page = client::ScrapeMetrics(rest.substr(0, rest.find(' ')), kPatience);
    EXPECT_TRUE(page.ok()) << page.status();
    return page->Sum("banyan_trunk_prompt_experts").value_or(-1);
  }

  // Ends without ever serving, and says this of it.
  void ExpectRefused(const Pool& pool, const std::vector<std::string>& words) {
    ASSERT_NO_FATAL_FAILURE(Launch(pool, HalfFrom(1)));
    const auto code = cluster_->trunk()->WaitExit(kPatience);
    ASSERT_TRUE(code.ok()) << code.status();
    EXPECT_EQ(*code, 1);
    const std::string log = cluster_->trunk()->Log();
    EXPECT_THAT(log, HasSubstr("banyan-trunk: error: --prompt_experts"));
    for (const std::string& word : words) EXPECT_THAT(log, HasSubstr(word));
  }

  TempDir model_;
  TempDir packs_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<inference::v1::Inference::Stub> stub_;
  std::string fingerprint_;  // of the model, once it has been served
};

class PromptExpertsEvalTest : public PromptExpertsProcessTest,
                              public ::testing::WithParamInterface<std::pair<Pool, int>> {};

// Whole answers and every bit of their probabilities, alone and in company.
TEST_P(PromptExpertsEvalTest, AnswersExactlyAloneAndInCompany) {
  const auto& [pool, long_tokens] = GetParam();
  std::vector<std::string> args = HalfFrom(long_tokens);
  // Most prompts take several steps when others are there too.
  args.insert(args.end(), {"--max_sequences=16", "--max_batch_tokens=160"});
  ASSERT_NO_FATAL_FAILURE(Start(pool, args));
  EXPECT_THAT(cluster_->trunk()->Log(),
              HasSubstr(fmt::format(" prompt_experts experts=16,16,16,16 of=32 pool_format={} "
                                    "slices={} ",
                                    pool.format, pool.num_shards)));
  EXPECT_EQ(Gauge(), 16);

  const EvalSet set = LoadEvalSet();
  std::vector<float> alone;
  for (const int concurrency : {1, 16}) {
    SCOPED_TRACE(fmt::format("{} at a time", concurrency));
    const ExactAnswers answers = AskSingleAnswers(*cluster_, set, concurrency);
    EXPECT_EQ(answers.asked, (214 + kInputStep - 1) / kInputStep);
    EXPECT_THAT(answers.wrong, IsEmpty());
    const absl::StatusOr<std::vector<float>> logprobs = AnswerLogprobs(*cluster_, set, concurrency);
    ASSERT_TRUE(logprobs.ok()) << logprobs.status();
    if (alone.empty()) alone = *logprobs;
    EXPECT_TRUE(SameBits(*logprobs, alone));
  }
  const double perplexity = Perplexity(alone);
  RecordProperty("perplexity", fmt::format("{:.9f}", perplexity));
  if (kSanitized) {
    EXPECT_LT(perplexity, 1.3) << "of every eighth case";
    return;
  }
  EXPECT_GE(perplexity, 1.1063);
  EXPECT_LE(perplexity, 1.1070);
}

// All prompts, and those of 100 tokens on, which are about half of them.
INSTANTIATE_TEST_SUITE_P(
    Pools, PromptExpertsEvalTest,
    ::testing::Values(std::pair(Pool{"OneMapped", 1, "width", "int8", "map"}, 1),
                      std::pair(Pool{"TwoByWidthShared", 2, "width", "int8", "shm"}, 1),
                      std::pair(Pool{"TwoByExperts", 2, "experts", "nf4", "map"}, 100)),
    [](const auto& param) { return param.param.first.name; });

// What was asked for and cannot be had ends the start.
TEST_F(PromptExpertsProcessTest, APoolThatIsNotLentIsNamed) {
  ExpectRefused({"", 1, "width", "int8", "anonymous"}, {"unix:", "--pool_memory"});
}

TEST_F(PromptExpertsProcessTest, NorAreFilesOfTheCheckpointAPool) {
  ExpectRefused({"", 1, "width", "auto", "map"}, {"those of the checkpoint", "--pool_format"});
}

// Left to itself a trunk on a CPU asks for no pool, whatever the hosts have.
TEST_F(PromptExpertsProcessTest, NothingOfTheKindByDefault) {
  ASSERT_NO_FATAL_FAILURE(
      Start({"", 1, "width", "int8", "anonymous"}, {"--expert_activations=bf16"}));
  EXPECT_THAT(cluster_->trunk()->Log(), Not(HasSubstr("prompt_experts")));
  EXPECT_EQ(Gauge(), 0);
}

// The trunk keeps what it has mapped; the host that comes back has the same.
TEST_F(PromptExpertsProcessTest, AHostThatIsKilledAndStartedAgain) {
  const EvalSet set = LoadEvalSet();
  for (const char* memory : {"map", "shm"}) {
    SCOPED_TRACE(memory);
    ASSERT_NO_FATAL_FAILURE(Start({"", 2, "width", "int8", memory}, HalfFrom(1)));
    std::vector<std::vector<int32_t>> answers;
    const auto ask = [&] {
      answers.emplace_back();
      for (const size_t k : {0, 7, 21}) {
        const auto answer = Generate(*stub_, GreedyRequest(set.cases[k]));
        ASSERT_TRUE(answer.ok()) << answer.status();
        answers.back().insert(answers.back().end(), answer->ids.begin(), answer->ids.end());
      }
    };
    ASSERT_NO_FATAL_FAILURE(ask());
    for (const int shard : {0, 1}) {
      cluster_->expert(shard)->Signal(SIGKILL);
      ASSERT_TRUE(cluster_->expert(shard)->WaitExit(kPatience).ok());
      ASSERT_TRUE(cluster_->StartExpert(shard).ok());
      ASSERT_NO_FATAL_FAILURE(ask());
    }
    EXPECT_EQ(answers[1], answers[0]);
    EXPECT_EQ(answers[2], answers[0]);
    EXPECT_EQ(Gauge(), 16);
  }
}

}  // namespace
}  // namespace banyan::test
