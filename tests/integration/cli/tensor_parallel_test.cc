// A trunk in two parts behind `banyan serve`, of which one sends rows to the experts, in bf16: it
// answers the demo model's questions as one part does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "common/base/strings.h"
#include "tests/integration/cli/served.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST(TensorParallelTest, TwoPartsAnswerAllQuestionsExactly) {
  Served served({"--backend", "cpu", "--tensor_parallel", "2", "--expert_activations", "bf16"});
  ASSERT_TRUE(served.AwaitReady().ok()) << FileText(served.log_path());
  EXPECT_THAT(FileText(served.log_path()), HasSubstr("tensor_parallel=2"));
  EXPECT_THAT(FileText(served.log_path()), HasSubstr("expert_activations=bf16"));
  const Result bench =
      Banyan(fmt::format("bench{} --eval {}/eval.json --concurrency 8 "
                         "--output json",
                         served.Server(), kModel));
  ASSERT_EQ(bench.exit_code, 0) << bench.error;
  const json found = json::parse(bench.out, nullptr, false);
  ASSERT_TRUE(found.is_object()) << bench.out;
  EXPECT_EQ(found["exact"], 214);
  EXPECT_NEAR(found["perplexity"].get<double>(), 1.1064, 0.0005);
}

TEST(TensorParallelTest, WhatCannotBeCutIsRefusedWithTheNumbers) {
  const std::string model = std::string(" --model ") + kModel;
  const Result plan = Banyan("plan --bandwidth 1 --tensor_parallel 4" + model);
  EXPECT_EQ(plan.exit_code, 1);
  EXPECT_THAT(plan.error, HasSubstr("--tensor_parallel 4: num_attention_heads is 2, expected a "
                                    "multiple of 4"));
  EXPECT_EQ(Banyan("plan --tensor_parallel 3" + model).exit_code, 2);

  Process trunk({BinaryPath("banyan-trunk"), "--model", kModel, "--experts=unix:/nowhere",
                 "--listen=127.0.0.1:0", "--metrics_listen=", "--backend=cpu",
                 "--tensor_parallel=4"});
  EXPECT_EQ(trunk.WaitExit(kPatience).value_or(-1), 1);
  EXPECT_THAT(trunk.Log(), HasSubstr("num_attention_heads is 2"));
  Process wrong({BinaryPath("banyan-trunk"), "--model", kModel, "--experts=unix:/nowhere",
                 "--tensor_parallel=3"});
  EXPECT_EQ(wrong.WaitExit(kPatience).value_or(-1), 2);
  EXPECT_THAT(wrong.Log(), HasSubstr("--tensor_parallel 3: expected 1, 2, 4 or 8"));
}

}  // namespace
}  // namespace banyan::test
