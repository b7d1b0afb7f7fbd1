// banyan-trunk as clients meet it: answers, limits, bad clients, stopping.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "proto/health/v1/health.grpc.pb.h"
#include "tests/fakes/sanitized.h"
#include "tests/integration/cluster.h"

namespace banyan::test {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(60);

GenerateRequest Question(const std::string& question) {
  GenerateRequest request;
  auto* const message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(question);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

// Runs until it is told to stop: no end tokens.
GenerateRequest Endless() {
  GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  request.set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

class TrunkProcessTest : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> trunk_args = {}, int num_shards = 1) {
    ClusterOptions options;
    options.model_dir = BANYAN_SOURCE_DIR "/deploy/models/demo";
    options.num_shards = num_shards;
    options.unix_sockets = true;
    options.trunk_args = std::move(trunk_args);
    cluster_.emplace(std::move(options));
    ASSERT_TRUE(cluster_->Start().ok());
    const absl::Status serving = cluster_->AwaitServing(kLong);
    ASSERT_TRUE(serving.ok()) << serving;
    stub_ = cluster_->NewStub();
  }

  grpc::Status Fail(const GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    GenerateResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }

  std::optional<Cluster> cluster_;
  std::unique_ptr<inference::v1::Inference::Stub> stub_;
};

TEST_F(TrunkProcessTest, AnswersTextChatAndIdsAlike) {
  Start();
  const auto chat = Generate(*stub_, Question("What is the capital of France?"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_THAT(chat->text, HasSubstr("Paris"));
  EXPECT_EQ(chat->finished.reason(), inference::v1::STOP);
  EXPECT_EQ(chat->finished.stop_match(), "<|im_end|>");
  EXPECT_EQ(chat->finished.completion_tokens(), static_cast<int>(chat->ids.size()));
  EXPECT_EQ(chat->ids.back(), 1002);

  inference::v1::TokenizeRequest tokenize;
  *tokenize.mutable_chat() = Question("What is the capital of France?").chat();
  inference::v1::TokenizeResponse prompt;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Tokenize(&context, tokenize, &prompt).ok());

  GenerateRequest by_ids = Question("");
  by_ids.mutable_token_ids()->mutable_ids()->CopyFrom(prompt.ids());
  GenerateRequest by_text = Question("");
  by_text.set_text(prompt.rendered());
  for (const GenerateRequest& request : {by_ids, by_text}) {
    const auto answer = Generate(*stub_, request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->ids, chat->ids);
    EXPECT_EQ(answer->text, chat->text);
  }

  GenerateRequest stopped = Question("What is the capital of France?");
  stopped.add_stop("f Fra");
  const auto cut = Generate(*stub_, stopped);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->text, chat->text.substr(0, chat->text.find("f Fra")));
  EXPECT_EQ(cut->finished.stop_match(), "f Fra");

  GenerateRequest prompt_only = Question("What is the capital of France?");
  prompt_only.mutable_sampling()->set_max_new_tokens(0);
  prompt_only.set_prompt_logprobs(true);
  const auto scored = Generate(*stub_, prompt_only);
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_TRUE(scored->ids.empty());
  EXPECT_EQ(scored->started.prompt_logprobs_size(), prompt.ids_size() - 1);
  EXPECT_EQ(scored->finished.reason(), inference::v1::LENGTH);
}

TEST_F(TrunkProcessTest, BadRequestsNameTheFieldAndTheServiceLives) {
  Start({"--max_context_tokens=256"});
  GenerateRequest request = Question("x");
  request.mutable_sampling()->set_temperature(-1);
  EXPECT_THAT(Fail(request).error_message(), HasSubstr("sampling.temperature -1"));
  request = Question("x");
  request.mutable_chat()->mutable_messages(0)->set_role("wizard");
  EXPECT_THAT(Fail(request).error_message(), HasSubstr("chat.messages[0].role \"wizard\""));
  request = Endless();
  for (int i = 0; i < 300; ++i) request.mutable_token_ids()->add_ids(5);
  EXPECT_THAT(Fail(request).error_message(),
              AllOf(HasSubstr("301 tokens"), HasSubstr("context holds 256")));
  request = Endless();
  request.mutable_sampling()->set_max_new_tokens(2'000'000'000);
  const auto clamped = Generate(*stub_, request);
  ASSERT_TRUE(clamped.ok()) << clamped.status();
  EXPECT_EQ(clamped->finished.completion_tokens(), 255);

  request = GenerateRequest();
  request.set_text(std::string(9 << 20, 'x'));
  const grpc::Status too_long = Fail(request);
  EXPECT_EQ(too_long.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(too_long.error_message(), HasSubstr("larger than max"));
  EXPECT_TRUE(Generate(*stub_, Question("What is the capital of France?")).ok());
}

TEST_F(TrunkProcessTest, DeadlinesAndCancellationFreeTheModel) {
  Start({"--max_sequences=1"});
  EXPECT_EQ(Generate(*stub_, Endless(), absl::Milliseconds(400)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Endless());
    GenerateResponse response;
    ASSERT_TRUE(reader->Read(&response));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  // The only sequence is free again.
  const auto answer = Generate(*stub_, Question("What is the capital of France?"));
  EXPECT_TRUE(answer.ok()) << answer.status();
}

TEST_F(TrunkProcessTest, AClientThatNeverReadsIsEndedAndHarmsNobody) {
  Start({"--slow_client_timeout=500ms"});
  GenerateRequest request = Endless();
  request.set_num_logprobs(20);
  // A window that is not widened: what is unread stays with the trunk.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto sleeper = inference::v1::Inference::NewStub(grpc::CreateCustomChannel(
      cluster_->trunk_address(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  const auto reader = sleeper->Generate(&context, request);
  const auto line = cluster_->trunk()->WaitForLine("outcome=slow_client", kLong);
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_TRUE(Generate(*stub_, Question("What is the capital of France?")).ok());
  context.TryCancel();
  reader->Finish();
}

TEST_F(TrunkProcessTest, TenThousandRequestsAgainstAQueueOf64) {
  Start({"--max_queued_requests=64", "--max_sequences=2", "--max_batch_tokens=128"});
  const auto storm = [this](int num_requests) {
    struct Call {
      grpc::ClientContext context;
      GenerateResponse response;
      grpc::Status status;
      std::unique_ptr<grpc::ClientAsyncReader<GenerateResponse>> reader;
    };
    // All at once: every call is open before the first is looked at.
    std::vector<Call> calls(static_cast<size_t>(num_requests));
    grpc::CompletionQueue queue;
    GenerateRequest request = Endless();  // as long as the context allows
    request.mutable_sampling()->set_max_new_tokens(1'000'000);
    for (Call& call : calls) {
      call.reader = stub_->PrepareAsyncGenerate(&call.context, request, &queue);
      call.reader->StartCall(nullptr);
      call.reader->Finish(&call.status, &call);
    }
    int refused = 0;
    int started = 0;
    for (int ended = 0; ended < num_requests; ++ended) {
      void* tag = nullptr;
      bool ok = false;
      // StartCall's own events carry no tag.
      while (tag == nullptr) {
        const auto quiet = std::chrono::system_clock::now() + std::chrono::milliseconds(300);
        // Those that are left are the accepted ones, 64 queued and 2 running: let them go.
        if (queue.AsyncNext(&tag, &ok, quiet) == grpc::CompletionQueue::TIMEOUT) {
          for (Call& call : calls) call.context.TryCancel();
        }
      }
      const grpc::Status& status = static_cast<Call*>(tag)->status;
      if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
        ++refused;
      } else {
        ++started;
      }
    }
    queue.Shutdown();
    void* tag;
    bool ok;
    while (queue.Next(&tag, &ok)) {
    }
    return std::pair(refused, started);
  };
  storm(1000);  // the allocator's pools reach their size
  const int64_t before = cluster_->trunk()->ResidentBytes();
  const auto [refused, started] = storm(10000);
  EXPECT_GE(refused, 10000 - 66 - 200);
  EXPECT_EQ(refused + started, 10000);
  const int64_t grown = cluster_->trunk()->ResidentBytes() - before;
  if (!kSanitized) {  // address: freed memory is kept for a while
    EXPECT_LT(grown, int64_t{16} << 20) << "bytes for 10,000 refused requests";
  }
  const auto answer = Generate(*stub_, Question("What is the capital of France?"));
  EXPECT_TRUE(answer.ok()) << answer.status();
}

// Steps that run as two halves: the same tokens and log-probabilities as undivided, many requests
// at once, and a shard that is killed under them.
TEST_F(TrunkProcessTest, HalvedStepsGiveTheSameAnswers) {
  std::vector<GenerateRequest> requests;
  for (int r = 0; r < 6; ++r) {
    GenerateRequest& request = requests.emplace_back();
    for (int i = 0; i < 70 + 137 * r; ++i) {
      request.mutable_token_ids()->add_ids(5 + (i * (r + 3)) % 900);
    }
    request.set_ignore_eos(true);
    request.set_num_logprobs(2);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_new_tokens(12);
  }
  const auto run_all = [&] {
    std::vector<absl::StatusOr<Answer>> answers(requests.size(), absl::UnknownError("not run"));
    std::vector<std::thread> threads;
    for (size_t r = 0; r < requests.size(); ++r) {
      threads.emplace_back([&, r] { answers[r] = Generate(*stub_, requests[r]); });
    }
    for (std::thread& thread : threads) thread.join();
    return answers;
  };
  Start({"--prefill_halves=off"}, 2);
  const std::vector<absl::StatusOr<Answer>> expected = run_all();
  for (const char* rows : {"2", "200"}) {
    Start({std::string("--prefill_halves=") + rows}, 2);
    const std::vector<absl::StatusOr<Answer>> halved = run_all();
    // Not started by a thread that ends: its children end with it.
    std::vector<absl::StatusOr<Answer>> interrupted = halved;
    std::thread caller([&] { interrupted = run_all(); });
    absl::SleepFor(absl::Milliseconds(50));
    cluster_->expert(1)->Signal(SIGKILL);
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_TRUE(cluster_->StartExpert(1).ok());
    caller.join();
    for (size_t r = 0; r < requests.size(); ++r) {
      SCOPED_TRACE(r);
      ASSERT_TRUE(expected[r].ok()) << expected[r].status();
      for (const absl::StatusOr<Answer>* answer :
           {&halved[r], std::as_const(interrupted).data() + r}) {
        ASSERT_TRUE(answer->ok()) << answer->status();
        EXPECT_EQ((*answer)->ids, expected[r]->ids);
        EXPECT_EQ((*answer)->text, expected[r]->text);
      }
    }
  }
}

TEST_F(TrunkProcessTest, SigtermLetsRequestsFinish) {
  Start();
  grpc::ClientContext context;
  GenerateRequest request = Endless();
  request.mutable_sampling()->set_max_new_tokens(300);
  const auto reader = stub_->Generate(&context, request);
  GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  cluster_->trunk()->Signal(SIGTERM);
  ASSERT_TRUE(cluster_->trunk()->WaitForLine("draining signal=15", kLong).ok());
  EXPECT_EQ(Fail(Question("x")).error_code(), grpc::StatusCode::UNAVAILABLE);
  int tokens = 0;
  bool finished = false;
  do {
    tokens += response.chunk().token_ids_size();
    finished = finished || response.has_finished();
  } while (reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(finished);
  EXPECT_EQ(tokens, 300);
  const auto code = cluster_->trunk()->WaitExit(kLong);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 0);
}

TEST_F(TrunkProcessTest, APortInUseIsNamed) {
  Start();
  Process second({BinaryPath("banyan-trunk"), "--model=" BANYAN_SOURCE_DIR "/deploy/models/demo",
                  "--listen=" + cluster_->trunk_address(),
                  "--metrics_listen=", "--experts=" + cluster_->expert_address(0)});
  const auto code = second.WaitExit(kLong);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1);
  EXPECT_THAT(second.Log(), HasSubstr(cluster_->trunk_address()));
}

TEST_F(TrunkProcessTest, WhatItWaitsForIsSaidAndALostShardIsSurvived) {
  Start({"--expert_wait=1s", "--expert_activations=bf16"}, 2);
  EXPECT_THAT(cluster_->trunk()->Log(), HasSubstr(" expert_activations=bf16 "));
  cluster_->expert(1)->Signal(SIGKILL);
  ASSERT_TRUE(cluster_->trunk()->WaitForLine("not_serving", kLong).ok());
  const absl::Status lost = Generate(*stub_, Question("What is the capital of France?")).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lost.message()), HasSubstr(cluster_->expert_address(1)));

  inference::v1::GetModelInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetModelInfo(&context, {}, &info).ok());
  ASSERT_EQ(info.shards_size(), 2);
  EXPECT_EQ(info.shards(0).states(0), "ready");
  EXPECT_NE(info.shards(1).states(0), "ready");
  EXPECT_EQ(info.expert_activations(), "bf16");

  ASSERT_TRUE(cluster_->StartExpert(1).ok());
  ASSERT_TRUE(cluster_->trunk()->WaitForLine("serving_again", kLong).ok());
  ASSERT_TRUE(cluster_->AwaitServing(kLong).ok());
  EXPECT_TRUE(Generate(*stub_, Question("What is the capital of France?")).ok());
}

TEST(TrunkStartTest, WaitsForALateShardAndSaysForWhich) {
  ClusterOptions options;
  options.model_dir = BANYAN_SOURCE_DIR "/deploy/models/demo";
  options.unix_sockets = true;
  options.num_shards = 2;
  Cluster cluster(options);
  ASSERT_TRUE(cluster.StartExpert(0).ok());
  ASSERT_TRUE(cluster.StartExpert(1).ok());
  const std::string late = cluster.expert_address(1);
  cluster.expert(1)->Signal(SIGKILL);
  ASSERT_TRUE(cluster.expert(1)->WaitExit(kLong).ok());
  ASSERT_TRUE(cluster.StartTrunk().ok());
  ASSERT_TRUE(cluster.trunk()->WaitForLine("waiting_for_experts", kLong).ok());

  const auto stub = cluster.NewStub();
  grpc::ClientContext context;
  const auto watch = stub->WatchLoad(&context, {});
  common::v1::LoadProgress progress;
  bool named = false;
  while (!named && watch->Read(&progress)) {
    named = progress.phase() == common::v1::LoadProgress::WAIT &&
            progress.detail().find(late) != std::string::npos;
  }
  EXPECT_TRUE(named);
  const absl::Status early = Generate(*stub, Question("x")).status();
  EXPECT_EQ(early.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(early.message()), HasSubstr(late));

  ASSERT_TRUE(cluster.StartExpert(1).ok());
  while (watch->Read(&progress)) {
  }
  EXPECT_TRUE(watch->Finish().ok());
  EXPECT_EQ(progress.phase(), common::v1::LoadProgress::READY);
  ASSERT_TRUE(cluster.AwaitServing(kLong).ok());
  EXPECT_TRUE(Generate(*stub, Question("What is the capital of France?")).ok());
}

}  // namespace
}  // namespace banyan::test
