#include "services/trunk/server/generate_calls.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "services/trunk/server/inference_service.h"
#include "tests/unit/services/trunk/server/demo_codec.h"
#include "tests/unit/services/trunk/server/scripted_engine.h"

namespace banyan::trunk {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using ::testing::HasSubstr;

// The service on a real gRPC server in this process; the test plays the engine.
class GenerateCallsTest : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }

  void Start(GenerateCalls::Options options) {
    Stop();
    model_.facts = DemoFacts();
    model_.facts.max_context_tokens = 100000;
    model_.engine = &engine_;
    model_.add_shards = [](inference::v1::GetModelInfoResponse& info) {
      info.add_shards()->set_index(0);
    };
    workers_ = std::make_unique<PromptWorkers>(8);
    service_ = std::make_unique<InferenceService>(&tracker_, &watchers_, workers_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    calls_ =
        std::make_unique<GenerateCalls>(options, builder.AddCompletionQueue(), workers_.get(),
                                        &request_metrics_, [this] { return service_->GetModel(); });
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    calls_->Start([this](grpc::ServerContext* context, GenerateRequest* request,
                         GenerateCalls::Writer* writer, grpc::ServerCompletionQueue* queue,
                         void* tag) {
      service_->RequestGenerate(context, request, writer, queue, queue, tag);
    });
    // Without the probe a client's window stays at 64 KiB.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    stub_ = inference::v1::Inference::NewStub(grpc::CreateCustomChannel(
        fmt::format("127.0.0.1:{}", port), grpc::InsecureChannelCredentials(), arguments));
    service_->SetModel(&model_);
  }

  void Stop() {
    if (server_ == nullptr) return;
    watchers_.Stop();
    server_->Shutdown(std::chrono::system_clock::now());
    workers_.reset();
    calls_->Stop();
    server_.reset();
  }
  void TearDown() override { Stop(); }

  static GenerateRequest Hello() {
    GenerateRequest request;
    request.set_text("hello");
    return request;
  }

  MetricsRegistry metrics_;
  RequestMetrics request_metrics_{&metrics_};
  LoadTracker tracker_;
  LoadWatchers watchers_{tracker_};
  ScriptedEngine engine_;
  ServingModel model_;
  std::unique_ptr<PromptWorkers> workers_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<GenerateCalls> calls_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<inference::v1::Inference::Stub> stub_;
};

TEST_F(GenerateCallsTest, StreamsOneMessagePerStep) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Hello());
  const Request request = engine_.AwaitRequest(1);
  EXPECT_EQ(request.prompt_ids, DemoCodec().Encode("hello"));
  EXPECT_THAT(request.request_id, HasSubstr("r-"));
  RequestListener& listener = engine_.listener(1);
  listener.OnStarted({});
  GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.started().request_id(), request.request_id);
  const std::vector<int32_t> ids = DemoCodec().Encode("a bird");
  std::string text;
  for (const int32_t id : ids) {
    listener.OnToken(id, false, nullptr);
    ASSERT_TRUE(reader->Read(&response));
    ASSERT_EQ(response.chunk().token_ids_size(), 1);
    EXPECT_EQ(response.chunk().token_ids(0), id);
    text += response.chunk().text();
  }
  EXPECT_EQ(text, "a bird");
  listener.OnFinished(Ended(FinishReason::kLength));
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.finished().reason(), inference::v1::LENGTH);
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GenerateCallsTest, TheEngineGetsATraceparentThatIsValidAndElseNone) {
  const std::string valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{}, ""},
      {{valid}, valid},
      {{"cc" + valid.substr(2) + "-more"}, valid},
      {{valid + "-more"}, ""},
      {{"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"}, ""},
      {{"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}, ""},
      {{valid, valid}, ""}};
  int64_t handle = 0;
  for (const auto& [given, expected] : cases) {
    grpc::ClientContext context;
    for (const std::string& header : given) context.AddMetadata("traceparent", header);
    const auto reader = stub_->Generate(&context, Hello());
    EXPECT_EQ(engine_.AwaitRequest(++handle).traceparent, expected);
    engine_.listener(handle).OnStarted({});
    engine_.listener(handle).OnFinished(Ended(FinishReason::kLength));
    GenerateResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_TRUE(reader->Finish().ok()) << "a request is served whatever the header";
  }
}

TEST_F(GenerateCallsTest, RefusalsCarryReasonAndRetryAdvice) {
  engine_.Refuse(absl::ResourceExhaustedError("64 requests wait already"));
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Hello());
  GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "64 requests wait already");
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("banyan-request-id"), 1u);
}

TEST_F(GenerateCallsTest, MoreCallsThanTheServerTakesAreRefused) {
  GenerateCalls::Options options;
  options.max_calls = 2;
  Start(options);
  grpc::ClientContext held[2];
  std::unique_ptr<grpc::ClientReader<GenerateResponse>> readers[2];
  for (int i = 0; i < 2; ++i) {
    readers[i] = stub_->Generate(&held[i], Hello());
    engine_.AwaitRequest(i + 1);
  }
  for (int i = 0; i < 100; ++i) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Hello());
    GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    ASSERT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  EXPECT_EQ(engine_.num_requests(), 2);
  engine_.listener(1).OnFinished(Ended(FinishReason::kStop));
  GenerateResponse response;
  ASSERT_TRUE(readers[0]->Read(&response));
  EXPECT_TRUE(readers[0]->Finish().ok());
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Hello());
  engine_.AwaitRequest(3);
  engine_.listener(3).OnFinished(Ended(FinishReason::kStop));
  EXPECT_TRUE(reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
  engine_.listener(2).OnFinished(Ended(FinishReason::kStop));
  EXPECT_TRUE(readers[1]->Read(&response));
  EXPECT_TRUE(readers[1]->Finish().ok());
}

TEST_F(GenerateCallsTest, AVanishedClientCancelsTheRequest) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Hello());
  engine_.AwaitRequest(1);
  context.TryCancel();
  engine_.AwaitCancel(1);
  engine_.listener(1).OnFinished(Ended(FinishReason::kCancelled));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerateCallsTest, TheClientsDeadlineIsPassedOn) {
  grpc::ClientContext context;
  const auto deadline = std::chrono::system_clock::now() + std::chrono::milliseconds(300);
  context.set_deadline(deadline);
  const auto reader = stub_->Generate(&context, Hello());
  const Request request = engine_.AwaitRequest(1);
  EXPECT_LT(absl::AbsDuration(request.deadline - absl::FromChrono(deadline)),
            absl::Milliseconds(100));
  engine_.AwaitCancel(1);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GenerateCallsTest, AClientThatNeverReadsIsEnded) {
  GenerateCalls::Options options;
  options.slow_client_timeout = absl::Milliseconds(200);
  Start(options);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Hello());
  engine_.AwaitRequest(1);
  RequestListener& listener = engine_.listener(1);
  listener.OnStarted({});
  // 1.7 MB: more than the client's window, less than what may wait for it.
  TokenLogprobs logprobs;
  logprobs.top_ids.assign(20, 1000000);
  logprobs.top_logprobs.assign(20, -1.0f);
  for (int i = 0; i < 10000; ++i) ASSERT_FALSE(listener.OnToken(5, false, &logprobs));
  engine_.AwaitCancel(1);
  listener.OnFinished(Ended(FinishReason::kCancelled));
  GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(metrics_
                .Counter("banyan_trunk_calls_total", "Generate calls that have ended, by outcome.",
                         {{"outcome", "slow_client"}})
                .Value(),
            1);
}

TEST_F(GenerateCallsTest, BadRequestIdsAreRefusedByName) {
  GenerateRequest request = Hello();
  request.set_request_id(std::string(1000, 'x'));
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("request_id: 1000 bytes"));
}

TEST_F(GenerateCallsTest, DrainingAndLoadingServersSaySo) {
  service_->SetModel(nullptr);
  tracker_.SetPhase(common::v1::LoadProgress::WAIT, "shard 1 of 2: 127.0.0.1:9");
  const auto status = [this] {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Hello());
    GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    return reader->Finish();
  };
  const grpc::Status loading = status();
  EXPECT_EQ(loading.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(loading.error_message(), HasSubstr("WAIT, shard 1 of 2"));
  service_->SetModel(&model_);
  service_->SetDraining();
  EXPECT_THAT(status().error_message(), HasSubstr("shutting down"));
}

TEST_F(GenerateCallsTest, TokenizeAndDetokenize) {
  inference::v1::TokenizeRequest request;
  request.mutable_chat()->add_messages()->set_role("user");
  request.mutable_chat()->mutable_messages(0)->set_content("hello <|im_end|>");
  inference::v1::TokenizeResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
  EXPECT_THAT(response.rendered(), HasSubstr("hello <|im_end|>"));

  inference::v1::DetokenizeRequest back;
  *back.mutable_ids() = response.ids();
  inference::v1::DetokenizeResponse text;
  grpc::ClientContext second;
  ASSERT_TRUE(stub_->Detokenize(&second, back, &text).ok());
  EXPECT_EQ(text.text(), response.rendered());

  back.add_ids(99999);
  grpc::ClientContext third;
  EXPECT_EQ(stub_->Detokenize(&third, back, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  grpc::ClientContext fourth;
  EXPECT_EQ(stub_->Tokenize(&fourth, {}, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace banyan::trunk
