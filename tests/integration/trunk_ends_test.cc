// How a trunk ends, and what it serves when the checkpoint lacks something.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/strings.h"
#include "tests/integration/cluster.h"

namespace banyan::test {
namespace {

using common::v1::LoadProgress;
using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kDemo[] = BANYAN_SOURCE_DIR "/deploy/models/demo";
constexpr absl::Duration kLong = absl::Seconds(60);

// A copy of the demo model that may be damaged.
class TrunkEndsTest : public ::testing::Test {
 protected:
  TrunkEndsTest() { std::filesystem::copy(kDemo, temp_.path()); }

  ClusterOptions Options() const {
    ClusterOptions options;
    options.model_dir = temp_.path();
    options.unix_sockets = true;
    return options;
  }

  static GenerateRequest Ids(int num_tokens) {
    GenerateRequest request;
    request.mutable_token_ids()->add_ids(5);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_new_tokens(num_tokens);
    return request;
  }

  TempDir temp_;
};

TEST_F(TrunkEndsTest, WithoutTokenizerFilesIdsAreServed) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    std::filesystem::remove(temp_.File(name));
  }
  Cluster cluster(Options());
  ASSERT_TRUE(cluster.Start().ok());
  ASSERT_TRUE(cluster.AwaitServing(kLong).ok()) << cluster.trunk()->Log();
  const auto stub = cluster.NewStub();
  const auto answer = Generate(*stub, Ids(3));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->ids.size(), 3u);
  EXPECT_EQ(answer->text, "");

  GenerateRequest text;
  text.set_text("hello");
  const absl::Status refused = Generate(*stub, text).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("text"), HasSubstr("tokenizer")));
}

TEST_F(TrunkEndsTest, ATokenizerWithoutMergesIsRefused) {
  const std::string path = temp_.File("tokenizer.json");
  nlohmann::json tokenizer = nlohmann::json::parse(std::ifstream(path));
  ASSERT_EQ(tokenizer["model"].erase("merges"), 1u);
  std::ofstream(path) << tokenizer;
  Process trunk({BinaryPath("banyan-trunk"), "--model=" + temp_.path(),
                 "--listen=unix:" + temp_.File("trunk.sock"),
                 "--metrics_listen=", "--experts=unix:" + temp_.File("no.sock")});
  const auto code = trunk.WaitExit(kLong);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1);
  EXPECT_THAT(trunk.Log(), AllOf(HasSubstr("tokenizer.json"), HasSubstr("merges")));
}

// The expert has another model. Watchers hear the reason before the trunk ends with it.
TEST_F(TrunkEndsTest, AFailedLoadIsToldToWatchers) {
  Process expert({BinaryPath("banyan-expert"), "--model=" BANYAN_SOURCE_DIR "/tests/data/tiny",
                  "--listen=unix:" + temp_.File("expert.sock"), "--metrics_listen="});
  ASSERT_TRUE(expert.WaitForLine("ready", kLong).ok());
  Process trunk({BinaryPath("banyan-trunk"), "--model=" + temp_.path(),
                 "--listen=unix:" + temp_.File("trunk.sock"),
                 "--metrics_listen=", "--experts=unix:" + temp_.File("expert.sock")});
  ASSERT_TRUE(trunk.ListeningAddress(kLong).ok());
  const auto stub = inference::v1::Inference::NewStub(
      grpc::CreateChannel("unix:" + temp_.File("trunk.sock"), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto watch = stub->WatchLoad(&context, {});
  LoadProgress progress;
  while (watch->Read(&progress)) {
  }
  EXPECT_TRUE(watch->Finish().ok());
  EXPECT_EQ(progress.phase(), LoadProgress::FAILED) << progress.DebugString();
  EXPECT_THAT(progress.detail(), AllOf(HasSubstr("fingerprint"), HasSubstr("expert.sock")));
  const auto code = trunk.WaitExit(kLong);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1);
  EXPECT_THAT(trunk.Log(), HasSubstr("fingerprint"));
}

TEST_F(TrunkEndsTest, ASecondSignalEndsADrainAtOnce) {
  Cluster cluster(Options());
  ASSERT_TRUE(cluster.Start().ok());
  ASSERT_TRUE(cluster.AwaitServing(kLong).ok());
  const auto stub = cluster.NewStub();
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ids(1'000'000'000));
  GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  cluster.trunk()->Signal(SIGTERM);
  ASSERT_TRUE(cluster.trunk()->WaitForLine("draining signal=15", kLong).ok());
  cluster.trunk()->Signal(SIGTERM);
  const auto code = cluster.trunk()->WaitExit(kLong);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 128 + SIGTERM);
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TrunkEndsTest, AShardThatIsTruncatedWhileServedIsNamed) {
  Cluster cluster(Options());
  ASSERT_TRUE(cluster.Start().ok());
  ASSERT_TRUE(cluster.AwaitServing(kLong).ok());
  for (const auto& file : std::filesystem::directory_iterator(temp_.path())) {
    if (file.path().extension() == ".safetensors") std::filesystem::resize_file(file.path(), 4096);
  }
  const auto stub = cluster.NewStub();
  EXPECT_EQ(Generate(*stub, Ids(3)).status().code(), absl::StatusCode::kUnavailable);
  const auto code = cluster.trunk()->WaitExit(kLong);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1);
  EXPECT_THAT(cluster.trunk()->Log(),
              AllOf(HasSubstr("error: "), HasSubstr(".safetensors: was truncated")));
}

}  // namespace
}  // namespace banyan::test
