// The expert's end of calls through shared memory, beside a stream of a plain gRPC client.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc/channel_settings.h"
#include "common/rpc/shm_ring.h"
#include "tests/fakes/expert_host.h"
#include "tests/fakes/temp_dir.h"
#include "tests/unit/services/trunk/experts/request_message.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::expert {
namespace {

using testing::HasSubstr;
using namespace testing_experts;  // NOLINT: names of the small model

constexpr ShmRingGeometry kRing = {kRowLimit, kTopK, kHidden};

// A trunk's stream with a ring.
struct Caller {
  Caller(const ExpertHost& host, v1::Experts::Stub& stub, const ShmRingGeometry& geometry,
         std::string offer = "") {
    auto made = ShmRingCaller::Create(geometry);
    EXPECT_TRUE(made.ok()) << made.status();
    ring = *std::move(made);
    const absl::Status sent = ring->HandOver(*MemoryInboxPath(host.address()));
    EXPECT_TRUE(sent.ok()) << sent;
    if (offer.empty()) offer = ring->offer();
    context.AddMetadata(kShmRingMetadataKey, offer);
    stream = stub.Forward(&context);
    stream->WaitForInitialMetadata();
    opened = context.GetServerInitialMetadata().count(kShmRingMetadataKey) == 1;
  }

  void Post(uint64_t sequence, const Rows& rows, uint32_t layer = 1) {
    std::memcpy(ring->Rows(), rows.activations.data(), rows.activations.size() * sizeof(float));
    ring->Post({.sequence = sequence,
                .layer = layer,
                .num_rows = static_cast<uint32_t>(rows.num_rows),
                .top_k = kTopK,
                .flags = kActivationsF32 | kReplyF32},
               rows.ids, rows.weights, "");
  }
  // False when none comes for long.
  bool Answered() {
    for (int i = 0; i < 3000 && !ring->HasAnswer(); ++i) ring->Wait(std::chrono::milliseconds(10));
    return ring->HasAnswer();
  }
  void ExpectRight(uint64_t sequence, int32_t num_rows = 2) {
    const Rows rows = RandomRows(static_cast<uint32_t>(sequence), num_rows);
    Post(sequence, rows);
    ASSERT_TRUE(Answered());
    const ForwardResponseView answer = ring->TakeAnswer();
    EXPECT_EQ(answer.header.sequence, sequence);
    EXPECT_EQ(answer.header.num_rows, static_cast<uint32_t>(num_rows));
    const std::vector<float> sums = ExpectedSums(rows, 1, false, 1);
    ASSERT_EQ(answer.partial_sums.size(), sums.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(answer.partial_sums.data(), sums.data(), answer.partial_sums.size()), 0);
  }
  grpc::Status End() {
    v1::ForwardResponse response;
    EXPECT_FALSE(stream->Read(&response));
    return stream->Finish();
  }
  grpc::Status Leave() {
    stream->WritesDone();
    return End();
  }

  std::unique_ptr<ShmRingCaller> ring;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ForwardRequest, v1::ForwardResponse>> stream;
  bool opened = false;
};

class ShmCallsTest : public testing::Test {
 protected:
  ShmCallsTest()
      : host_(std::make_unique<ExpertHost>(
            Options(temp_), MakeDescription(executor_.geometry(), v1::WIDTH, 0, 1, kFingerprint),
            &executor_)),
        stub_(v1::Experts::NewStub(grpc::CreateCustomChannel(
            host_->address(), grpc::InsecureChannelCredentials(), ExpertChannelArguments()))) {}

  static ExpertHost::Options Options(const test::TempDir& temp) {
    ExpertHost::Options options;
    options.listen = "unix:" + temp.File("e");
    return options;
  }

  double Refused() {
    return host_->metrics()
        .Counter("banyan_expert_frames_refused_total",
                 "Frames that broke a rule and ended their stream.")
        .Value();
  }

  test::TempDir temp_;
  ScalarExecutor executor_{Geometry(false, 0, 1)};
  std::unique_ptr<ExpertHost> host_;
  std::unique_ptr<v1::Experts::Stub> stub_;
};

TEST_F(ShmCallsTest, AreAnswered) {
  Caller caller(*host_, *stub_, kRing);
  ASSERT_TRUE(caller.opened);
  for (uint64_t sequence = 1; sequence <= 300; ++sequence) {
    caller.ExpectRight(sequence, sequence % 7 == 0 ? kRowLimit : 2);
  }
  EXPECT_TRUE(caller.Leave().ok());
}

TEST_F(ShmCallsTest, OfSeveralTrunksAtOnce) {
  std::vector<std::thread> trunks;
  for (uint64_t t = 0; t < 4; ++t) {
    trunks.emplace_back([this, t] {
      Caller caller(*host_, *stub_, kRing);
      ASSERT_TRUE(caller.opened);
      for (uint64_t sequence = t + 1; sequence < 400; sequence += 4) caller.ExpectRight(sequence);
      EXPECT_TRUE(caller.Leave().ok());
    });
  }
  for (std::thread& trunk : trunks) trunk.join();
}

TEST_F(ShmCallsTest, AnOfferThatCannotBeOpenedLeavesTheStream) {
  for (const std::string offer : {"nonsense", "00112233445566778899aabbccddeeff"}) {
    Caller caller(*host_, *stub_, kRing, offer);
    EXPECT_FALSE(caller.opened) << offer;
    EXPECT_TRUE(caller.Leave().ok());
  }
  Caller other(*host_, *stub_, {kRowLimit, kTopK, kHidden + 1});
  EXPECT_FALSE(other.opened);
  EXPECT_TRUE(other.Leave().ok());
}

TEST_F(ShmCallsTest, ABrokenRuleEndsTheStreamAndTheServiceLives) {
  const auto error = [this](const std::function<void(Rows&)>& change, uint32_t layer = 1) {
    Caller caller(*host_, *stub_, kRing);
    EXPECT_TRUE(caller.opened);
    caller.ExpectRight(5);
    Rows rows = RandomRows(1, 2);
    change(rows);
    caller.Post(6, rows, layer);
    const grpc::Status status = caller.End();
    EXPECT_FALSE(caller.ring->HasAnswer());
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_THAT(error([](Rows&) {}, 2), HasSubstr("layer 2, expected 0 to 1"));
  EXPECT_THAT(error([](Rows&) {}, 0xffffffff), HasSubstr("layer 4294967295"));
  EXPECT_THAT(error([](Rows& rows) { rows.ids[0] = 256; }), HasSubstr("this shard has 0 to 15"));
  EXPECT_EQ(Refused(), 3);
  Caller caller(*host_, *stub_, kRing);
  caller.ExpectRight(1);
  EXPECT_TRUE(caller.Leave().ok());
}

TEST_F(ShmCallsTest, AReplayedSequenceEndsTheStream) {
  for (const uint64_t second : {7, 6, 0}) {
    Caller caller(*host_, *stub_, kRing);
    caller.ExpectRight(7);
    caller.Post(second, RandomRows(1, 2));
    const grpc::Status status = caller.End();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(), "ForwardRequest sequence " + std::to_string(second) +
                                          " after 7: expected it to grow");
  }
}

TEST_F(ShmCallsTest, DrainingEndsTheStreamAfterTheAnswer) {
  Caller caller(*host_, *stub_, kRing);
  caller.ExpectRight(1);
  host_->Drain();
  const grpc::Status status = caller.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "this host is draining: it takes no further calls");
}

// Frames on the stream of a ring are answered as ever.
TEST_F(ShmCallsTest, FramesGoBeside) {
  Caller caller(*host_, *stub_, kRing);
  for (uint64_t sequence = 1; sequence < 50; ++sequence) {
    caller.ExpectRight(sequence);
    const Rows rows = RandomRows(static_cast<uint32_t>(sequence), 3);
    ASSERT_TRUE(caller.stream->Write(RequestMessage(sequence, rows)));
    v1::ForwardResponse response;
    ASSERT_TRUE(caller.stream->Read(&response));
    const std::vector<float> sums = ExpectedSums(rows, 1, false, 1);
    ASSERT_EQ(response.partial_sums().size(), sums.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(response.partial_sums().data(), sums.data(), sums.size() * 4), 0);
  }
  EXPECT_TRUE(caller.Leave().ok());
}

TEST_F(ShmCallsTest, ClientsThatVanishLeaveNothing) {
  for (uint64_t i = 0; i < 40; ++i) {
    Caller caller(*host_, *stub_, kRing);
    for (uint64_t call = 0; call < i % 3; ++call) {
      caller.Post(call + 1, RandomRows(1, kRowLimit));
    }
    caller.context.TryCancel();
    caller.stream->Finish();
  }
  prometheus::Gauge& open =
      host_->metrics().Gauge("banyan_expert_streams", "Forward streams open.");
  while (open.Value() != 0) std::this_thread::yield();
  Caller caller(*host_, *stub_, kRing);
  caller.ExpectRight(1);
  EXPECT_TRUE(caller.Leave().ok());
}

TEST_F(ShmCallsTest, AHostShutsDownUnderThem) {
  Caller caller(*host_, *stub_, kRing);
  caller.ExpectRight(1);
  caller.Post(2, RandomRows(1, kRowLimit));
  host_.reset();
  EXPECT_FALSE(caller.End().ok());
}

}  // namespace
}  // namespace banyan::expert
