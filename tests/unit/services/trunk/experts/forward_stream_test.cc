// The expert's end of the call, spoken to by a plain synchronous gRPC client.
#include "services/expert/server/forward_stream.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/impl/codegen/sync_stream.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc/channel_settings.h"
#include "common/rpc/expert_frame.h"
#include "tests/fakes/expert_host.h"
#include "tests/fakes/temp_dir.h"
#include "tests/unit/services/trunk/experts/request_message.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::expert {
namespace {

using testing::HasSubstr;
using namespace testing_experts;  // NOLINT: names of the small model

// With calls answered by the queue's thread, or aside.
class ForwardStreamTest : public testing::TestWithParam<size_t> {
 protected:
  void Start(ForwardStreamServer::Options forward = {}) {
    forward.aside_bytes = GetParam();
    ExpertHost::Options options;
    options.listen = "unix:" + temp_.File("e");
    options.forward = forward;
    host_ = std::make_unique<ExpertHost>(
        options, MakeDescription(executor_.geometry(), v1::WIDTH, 0, 1, kFingerprint), &executor_);
    channel_ = grpc::CreateCustomChannel(host_->address(), grpc::InsecureChannelCredentials(),
                                         ExpertChannelArguments());
    stub_ = v1::Experts::NewStub(channel_);
  }

  static v1::ForwardRequest Request(uint64_t sequence, int32_t num_rows = 2) {
    return RequestMessage(sequence, RandomRows(static_cast<uint32_t>(sequence), num_rows));
  }

  static void ExpectRight(const v1::ForwardResponse& response, uint64_t sequence,
                          int32_t num_rows = 2) {
    EXPECT_EQ(response.sequence(), sequence);
    const std::vector<float> sums =
        ExpectedSums(RandomRows(static_cast<uint32_t>(sequence), num_rows), 1, false, 1);
    ASSERT_EQ(response.partial_sums().size(), sums.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(response.partial_sums().data(), sums.data(), sums.size() * 4), 0);
  }

  // What a stream ends with after this request.
  grpc::Status EndOf(const v1::ForwardRequest& request) {
    grpc::ClientContext context;
    auto stream = stub_->Forward(&context);
    stream->Write(request);
    v1::ForwardResponse response;
    EXPECT_FALSE(stream->Read(&response));
    return stream->Finish();
  }

  // The same for bytes that need not be a message.
  grpc::Status EndOfBytes(const std::string& bytes) {
    grpc::ClientContext context;
    const grpc::internal::RpcMethod method("/banyan.expert.v1.Experts/Forward",
                                           grpc::internal::RpcMethod::BIDI_STREAMING, channel_);
    std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
        grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel_.get(), method, &context));
    const grpc::Slice slice(bytes);
    stream->Write(grpc::ByteBuffer(&slice, 1));
    grpc::ByteBuffer reply;
    while (stream->Read(&reply)) stream->WritesDone();
    return stream->Finish();
  }

  void ExpectServes() {
    grpc::ClientContext context;
    auto stream = stub_->Forward(&context);
    for (uint64_t sequence : {5, 6, 900}) {
      ASSERT_TRUE(stream->Write(Request(sequence)));
      v1::ForwardResponse response;
      ASSERT_TRUE(stream->Read(&response));
      ExpectRight(response, sequence);
    }
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
  }

  test::TempDir temp_;
  ScalarExecutor executor_{Geometry(false, 0, 1)};
  std::unique_ptr<ExpertHost> host_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Experts::Stub> stub_;
};

TEST_P(ForwardStreamTest, AnyGrpcClientCanCall) {
  Start();
  ExpectServes();
}

TEST_P(ForwardStreamTest, AnswersInOrderWhatIsSentAhead) {
  Start();
  grpc::ClientContext context;
  auto stream = stub_->Forward(&context);
  for (uint64_t sequence = 1; sequence <= 200; ++sequence) {
    ASSERT_TRUE(stream->Write(Request(sequence, kRowLimit)));
  }
  stream->WritesDone();
  v1::ForwardResponse response;
  for (uint64_t sequence = 1; sequence <= 200; ++sequence) {
    ASSERT_TRUE(stream->Read(&response));
    ExpectRight(response, sequence, kRowLimit);
  }
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_P(ForwardStreamTest, ServesSeveralTrunksAtOnce) {
  Start();
  std::vector<std::thread> trunks;
  for (uint64_t t = 0; t < 4; ++t) {
    trunks.emplace_back([this, t] {
      grpc::ClientContext context;
      auto stream = stub_->Forward(&context);
      for (uint64_t sequence = t + 1; sequence < 400; sequence += 4) {
        ASSERT_TRUE(stream->Write(Request(sequence)));
        v1::ForwardResponse response;
        ASSERT_TRUE(stream->Read(&response));
        ExpectRight(response, sequence);
      }
      stream->WritesDone();
      EXPECT_TRUE(stream->Finish().ok());
    });
  }
  for (std::thread& trunk : trunks) trunk.join();
}

TEST_P(ForwardStreamTest, ABrokenRuleEndsTheStreamAndTheServiceLives) {
  Start();
  const auto error = [this](const std::function<void(v1::ForwardRequest&)>& change) {
    v1::ForwardRequest request = Request(1);
    change(request);
    const grpc::Status status = EndOf(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_THAT(error([](auto& r) { r.set_num_rows(0); }), HasSubstr("num_rows 0"));
  EXPECT_EQ(error([](auto& r) { r = Request(1, kRowLimit + 1); }),
            "ForwardRequest num_rows 41: expected 1 to 40");
  EXPECT_THAT(error([](auto& r) { r.set_num_rows(3); }),
              HasSubstr("expert_ids: 12 bytes, expected 18"));
  EXPECT_THAT(error([](auto& r) { r.mutable_activations()->pop_back(); }),
              HasSubstr("activations: 95 bytes, expected 96 (2 rows of 12 values of 4 bytes)"));
  EXPECT_THAT(error([](auto& r) { r.set_layer(2); }), HasSubstr("layer 2, expected 0 to 1"));
  EXPECT_THAT(error([](auto& r) { r.set_layer(0xffffffff); }), HasSubstr("layer 4294967295"));
  EXPECT_THAT(error([](auto& r) { (*r.mutable_expert_ids())[1] = 1; }),
              HasSubstr("this shard has 0 to 15"));
  EXPECT_THAT(error([](auto& r) { r.set_flags(0x81); }), HasSubstr("flags 0x81"));
  EXPECT_EQ(host_->metrics()
                .Counter("banyan_expert_frames_refused_total",
                         "Frames that broke a rule and ended their stream.")
                .Value(),
            8);
  ExpectServes();
}

TEST_P(ForwardStreamTest, AReplayedSequenceEndsTheStreamAfterTheAnswers) {
  Start();
  for (uint64_t second : {7, 6, 0}) {
    grpc::ClientContext context;
    auto stream = stub_->Forward(&context);
    stream->Write(Request(7));
    stream->Write(Request(second));
    v1::ForwardResponse response;
    ASSERT_TRUE(stream->Read(&response));
    ExpectRight(response, 7);
    EXPECT_FALSE(stream->Read(&response));
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(), "ForwardRequest sequence " + std::to_string(second) +
                                          " after 7: expected it to grow");
  }
  ExpectServes();
}

TEST_P(ForwardStreamTest, GarbageEndsTheStreamAndTheServiceLives) {
  Start();
  std::mt19937 rng(12);
  const std::string good = Request(3).SerializeAsString();
  for (int i = 0; i < 200; ++i) {
    std::string bytes;
    switch (i % 3) {
      case 0:  // random
        bytes.resize(rng() % 300);
        for (char& c : bytes) c = static_cast<char>(rng());
        break;
      case 1:  // truncated
        bytes = good.substr(0, rng() % good.size());
        break;
      case 2:  // one bit flipped; in a payload of activations that is a call like any other
        bytes = good;
        bytes[rng() % bytes.size()] ^= static_cast<char>(1 << rng() % 8);
        break;
    }
    const grpc::Status status = EndOfBytes(bytes);
    if (i % 3 == 2) {
      EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    } else {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
      EXPECT_FALSE(status.error_message().empty());
    }
  }
  ExpectServes();
}

TEST_P(ForwardStreamTest, AMessageAboveTheLimitEndsTheStream) {
  Start();
  // The client's own limit is lifted to get it out at all.
  grpc::ChannelArguments arguments = ExpertChannelArguments();
  arguments.SetMaxSendMessageSize(-1);
  channel_ =
      grpc::CreateCustomChannel(host_->address(), grpc::InsecureChannelCredentials(), arguments);
  const grpc::Status status = EndOfBytes(std::string(kMaxMessageBytes + 1, 'x'));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("67108865 vs. 67108864"));
  ExpectServes();
}

TEST_P(ForwardStreamTest, StreamsBeyondTheLimitAreRefused) {
  Start({.max_streams = 2});
  grpc::ClientContext contexts[2];
  std::unique_ptr<grpc::ClientReaderWriter<v1::ForwardRequest, v1::ForwardResponse>> open[2];
  v1::ForwardResponse response;
  for (int i = 0; i < 2; ++i) {
    open[i] = stub_->Forward(&contexts[i]);
    open[i]->Write(Request(1));
    ASSERT_TRUE(open[i]->Read(&response));
  }
  const grpc::Status status = EndOf(Request(1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "2 Forward streams are open, the most this host serves");
  // One leaves, another may come: as soon as the host has noticed.
  open[0]->WritesDone();
  EXPECT_TRUE(open[0]->Finish().ok());
  grpc::Status again;
  do {
    grpc::ClientContext context;
    auto stream = stub_->Forward(&context);
    stream->Write(Request(1));
    if (stream->Read(&response)) {
      stream->WritesDone();
      again = stream->Finish();
      break;
    }
    again = stream->Finish();
  } while (again.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(again.ok()) << again.error_message();
  open[1]->WritesDone();
  EXPECT_TRUE(open[1]->Finish().ok());
}

TEST_P(ForwardStreamTest, DrainingEndsOpenAndNewStreams) {
  Start();
  grpc::ClientContext context;
  auto stream = stub_->Forward(&context);
  stream->Write(Request(1));
  v1::ForwardResponse response;
  ASSERT_TRUE(stream->Read(&response));
  host_->Drain();
  host_->Drain();
  EXPECT_FALSE(stream->Read(&response));
  grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "this host is draining: it takes no further calls");
  status = EndOf(Request(1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_P(ForwardStreamTest, ClientsThatVanishOrNeverReadLeaveNothing) {
  Start();
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    auto stream = stub_->Forward(&context);
    for (uint64_t sequence = 1; sequence <= static_cast<uint64_t>(i); ++sequence) {
      stream->Write(Request(sequence, kRowLimit));
    }
    context.TryCancel();
    stream->Finish();
  }
  ExpectServes();
  prometheus::Gauge& open =
      host_->metrics().Gauge("banyan_expert_streams", "Forward streams open.");
  while (open.Value() != 0) std::this_thread::yield();
}

TEST_P(ForwardStreamTest, ShutsDownUnderOpenStreams) {
  Start();
  grpc::ClientContext context;
  auto stream = stub_->Forward(&context);
  stream->Write(Request(1));
  v1::ForwardResponse response;
  ASSERT_TRUE(stream->Read(&response));
  host_.reset();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_FALSE(stream->Finish().ok());
}

INSTANTIATE_TEST_SUITE_P(Threads, ForwardStreamTest, testing::Values(size_t{1} << 20, size_t{1}),
                         [](const auto& test) { return test.param == 1 ? "Aside" : "Inline"; });

}  // namespace
}  // namespace banyan::expert
