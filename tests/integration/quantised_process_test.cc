// The small quantised models from their files to the answers of a trunk and its expert hosts over
// gRPC, against the references beside them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/golden/model/golden_data.h"
#include "tests/integration/cluster.h"

namespace banyan::test {
namespace {

struct Case {
  std::string name;
  std::string model;
  int num_shards;
  std::string split;
  std::string pool_format;  // that --pool_format auto chooses
};

constexpr float kTolerance = 1e-3f;    // golden/README: an f32 engine
constexpr float kDecisiveGap = 0.01f;  // between the reference's two best logits

std::string DataDir(const std::string& model) {
  return std::string(BANYAN_SOURCE_DIR) + "/tests/data/" + model;
}

class QuantisedProcessTest : public ::testing::TestWithParam<Case> {
 protected:
  void Start(const std::string& model) {
    ClusterOptions options;
    options.model_dir = DataDir(model);
    options.num_shards = GetParam().num_shards;
    options.split = GetParam().split;
    options.unix_sockets = true;
    options.trunk_args = {"--max_sequences=4"};
    options.expert_args = {"--pool_dir=" + packs_.path()};
    cluster_ = std::make_unique<Cluster>(options);
    ASSERT_TRUE(cluster_->Start().ok());
    const absl::Status serving = cluster_->AwaitServing(absl::Seconds(90));
    ASSERT_TRUE(serving.ok()) << serving;
    stub_ = cluster_->NewStub();
  }

  TempDir packs_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<inference::v1::Inference::Stub> stub_;
};

// Log-probability of `id`: logits are those of one position.
double Logprob(const float* logits, int64_t vocab, int32_t id) {
  const float most = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - most);
  return static_cast<double>(logits[id]) - most - std::log(sum);
}

TEST_P(QuantisedProcessTest, AnswersAsTheReference) {
  Start(GetParam().model);
  if (HasFatalFailure()) return;
  grpc::ClientContext context;
  inference::v1::GetModelInfoResponse info;
  ASSERT_TRUE(stub_->GetModelInfo(&context, {}, &info).ok());
  ASSERT_EQ(info.shards_size(), GetParam().num_shards);
  for (const auto& shard : info.shards()) EXPECT_EQ(shard.pool_format(), GetParam().pool_format);

  const GoldenData golden = ReadGolden(DataDir(GetParam().model));
  const auto vocab = static_cast<int64_t>(golden.prefill_logits.size()) / golden.num_tokens;
  inference::v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(golden.prompt.begin(), golden.prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_new_tokens(static_cast<int32_t>(golden.num_decoded));
  request.set_ignore_eos(true);
  request.set_prompt_logprobs(true);
  const absl::StatusOr<Answer> answer = Generate(*stub_, request);
  ASSERT_TRUE(answer.ok()) << answer.status();

  ASSERT_EQ(answer->started.prompt_logprobs_size(), golden.num_tokens - 1);
  for (int64_t t = 0; t + 1 < golden.num_tokens; ++t) {
    const auto& record = answer->started.prompt_logprobs(static_cast<int>(t));
    ASSERT_EQ(record.token_id(), golden.prompt[static_cast<size_t>(t) + 1]);
    // The difference of a logit and of a mean over all of them.
    ASSERT_NEAR(record.logprob(),
                Logprob(golden.prefill_logits.data() + t * vocab, vocab, record.token_id()),
                2 * kTolerance)
        << "prompt position " << t;
  }
  // decode_ids[i] is chosen by the logits after the prompt, then by decode_logits[i - 1].
  ASSERT_EQ(answer->ids.size(), golden.decode_ids.size());
  for (size_t i = 0; i < answer->ids.size(); ++i) {
    const float* const logits = i == 0
                                    ? golden.prefill_logits.data() + (golden.num_tokens - 1) * vocab
                                    : golden.decode_logits.data() + (i - 1) * vocab;
    std::vector<float> sorted(logits, logits + vocab);
    std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
    if (answer->ids[i] != golden.decode_ids[i]) {
      // From here on the texts differ, and may.
      ASSERT_LE(sorted[0] - sorted[1], kDecisiveGap) << "decode step " << i;
      break;
    }
  }
}

// Blocks of 64 are as wide as the experts of these models: nf4 is split by experts.
const Case kCases[] = {{"NF4", "tiny-nf4", 2, "experts", "nf4"},
                       {"NF4Single", "tiny-nf4-single", 1, "width", "nf4"},
                       {"Int8", "tiny-int8", 2, "width", "bf16"},
                       {"FP8", "tiny-fp8", 3, "width", "bf16"},
                       {"Fused", "tiny-fused", 2, "experts", "bf16"}};

INSTANTIATE_TEST_SUITE_P(Models, QuantisedProcessTest, ::testing::ValuesIn(kCases),
                         [](const auto& param) { return param.param.name; });

// Head sizes 128 and 256, 64 experts top-10, FP4 with a quantised router: served, and the same
// tokens whether the experts are one shard or three.
class WideModelTest : public QuantisedProcessTest {};

TEST_P(WideModelTest, SameTokensHoweverSplit) {
  static std::vector<std::vector<int32_t>> answers;
  Start("quantised/wide");
  if (HasFatalFailure()) return;
  inference::v1::GenerateRequest request;
  for (int32_t id = 1; id <= 40; ++id) request.mutable_token_ids()->add_ids(id * 7 % 64);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_new_tokens(16);
  request.set_ignore_eos(true);
  const absl::StatusOr<Answer> answer = Generate(*stub_, request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_EQ(answer->ids.size(), 16u);
  answers.push_back({answer->ids.begin(), answer->ids.end()});
  EXPECT_EQ(answers.back(), answers.front());
}

const Case kWide[] = {{"One", "quantised/wide", 1, "width", "bf16"},
                      {"ThreeByExperts", "quantised/wide", 3, "experts", "bf16"},
                      {"TwoByWidth", "quantised/wide", 2, "width", "bf16"}};
INSTANTIATE_TEST_SUITE_P(Models, WideModelTest, ::testing::ValuesIn(kWide),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace banyan::test
